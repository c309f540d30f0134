"""The layout of the eight GPUs: parameters as they are known elsewhere, and the page's figures as the command counts them."""

import json
from pathlib import Path

import pytest

from benchmarks import rl_memory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def counts():
    return rl_memory.parameters()


def test_parameters_are_those_known_elsewhere(counts):
    """CLIP ViT-B/16's vision half with projection has 86,192,640; the value model is documented in the page."""
    assert counts["CLIP"] == 86_192_640
    assert counts["value model"] == 99_305_729 + 270_336
    assert counts["policy"] > 3_754_622_976, "Qwen2.5-VL-3B's, and the action expert's"


def test_bytes_follow_from_parameters(counts):
    """DDP in float32: 4 + 4 + 8 + 4 bytes for each parameter; ZeRO-2: 2 + (2 + 12) / N, Rajbhandari et al., 2020, section 5."""
    trained = counts["policy"] + counts["value model"]
    total = sum(part.bytes for part in rl_memory.worker(counts, zero2=False))
    assert total == 20 * trained + 4 * counts["CLIP"]
    divided = sum(part.bytes for part in rl_memory.worker(counts, zero2=True))
    assert divided == pytest.approx((2 + (2 + 12) / 7) * trained + 4 * counts["CLIP"], abs=8)
    assert sum(part.bytes for part in rl_memory.scheduler(counts)) == 4 * counts["policy"]


def test_the_pages_figures_are_the_counted_ones(counts):
    page = (ROOT / "docs" / "reinforcement_learning.md").read_text(encoding="utf-8")
    for kind, zero2 in (("ddp", False), ("zero2", True)):
        total = sum(part.bytes for part in rl_memory.worker(counts, zero2)) / rl_memory.GIB
        saved = json.loads((ROOT / "benchmarks" / "results" / f"rl_memory_{kind}.json").read_text())
        assert saved["parameters"] == counts
        assert saved["GPUs 1 to 7, each"]["total_gib"] == round(total, 2)
        assert f"{total:.1f}" in page
    for count in counts.values():
        assert f"{count:,}" in page
