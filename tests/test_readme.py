"""The snippets of README and docs/usage.md run as they stand, in the order in which they stand; links lead somewhere."""

import html
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hub_stand_in import HubStandIn
from pretrained_parts import save_vision_tower, save_vlm

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import build_tiny_processor
from syvla.training.hub.model_card import write_model_card

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

PREAMBLE = """
import numpy as np
head, left, right = (np.full((32, 32, 3), value, np.uint8) for value in (30, 60, 90))
joints = np.zeros(14, np.float32)
"""
EPILOGUE = """
assert actions.shape == (1, processor.chunk_size, 14) and np.isfinite(actions).all()
assert isinstance(output.thoughts[0], str) and isinstance(answer, str)
assert adapted.get_nb_trainable_parameters()[0] < model.num_parameters() // 2
assert AutoModel.from_pretrained("outputs/assembled").config.embodiments["my_robot"]["action_dim"] == 7
assert AutoProcessor.from_pretrained("outputs/assembled").num_query_tokens == 20
"""


def snippets(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def save_demo_checkpoint(folder: Path) -> None:
    """What `make demo` leaves, with random weights."""
    config = SyVLAConfig.tiny()
    processor = build_tiny_processor(config)
    statistics = {"mean": np.zeros(14), "std": np.ones(14)}
    processor.set_embodiment("tabletop", {"state": statistics, "action": statistics})
    SyVLAModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_model_card(folder, config, processor, {})


@pytest.mark.slow
def test_use_it_runs(tmp_path):
    """README's snippet, then the page's seven: load and act, think, remember, ask, adapt, assemble, push."""
    blocks = snippets(README) + snippets(ROOT / "docs" / "usage.md")
    assert len(blocks) == 1 + 7
    save_demo_checkpoint(tmp_path / "outputs" / "demo" / "checkpoint")
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    save_vlm(tmp_path / "Qwen2.5-VL-3B-Instruct", files=True)
    save_vision_tower(tmp_path / "siglip-base-patch16-224", files=True)
    with HubStandIn.running() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
        script = PREAMBLE + "\n".join(blocks) + EPILOGUE
        run = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr[-3000:]
        assert {"config.json", "model.safetensors", "modeling_syvla.py", "README.md"} <= hub.files(
            "model/me/my-policy"
        ).keys()


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Every relative link names a file of the checkout, and every anchor a heading of that file."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_badges_are_true():
    """They are a file of the checkout, so they show without internet; what they say is pyproject's and the reader's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = [word.rpartition(" ")[2] for word in project["classifiers"] if re.search(r"Python :: 3\.\d", word)]
    (transformers,) = [word for word in project["dependencies"] if word.startswith("transformers")]
    svg = html.unescape((ROOT / "docs" / "figures" / "badges.svg").read_text(encoding="utf-8"))
    shown = dict(zip(*[iter(re.findall(r"<text[^>]*>([^<]+(?:<\d)?)</text>", svg))] * 2, strict=True))
    assert shown["license"] == project["license"]
    assert shown["python"] == " | ".join(versions)
    assert shown["transformers"] == transformers.removeprefix("transformers")
    assert "LeRobot v2.0, v2.1, v3.0 and v3.1" in (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    assert shown["data"] == "LeRobot v2.0 to v3.1"


def sentences(text: str) -> list[str]:
    """Sentences of a page's prose; code, tables and headings left out."""
    prose = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
    prose = re.sub(r"^[|#!].*$", "\n\n", prose, flags=re.MULTILINE)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+|\n\n+|\n- ", prose) if sentence.strip()]


def test_sentences_are_found():
    text = (
        "# A title. Of two.\n\nOne two. Three\nfour!\n\n| a. b |\n\n```sh\nno. no.\n```\n- five [six](a.b)\n- seven\n"
    )
    assert [" ".join(s.split()) for s in sentences(text)] == ["One two.", "Three four!", "- five [six]", "seven"]


def test_readme_can_be_read_in_a_minute():
    """At most 130 lines and 1000 words, no sentence of more than 25 words, no cell of a table of more than 25 either."""
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    words = [word for word in re.sub(r"<!--.*?-->", "", text).split() if re.search(r"\w", word)]
    assert len(words) <= 1000
    found = sentences(text)
    assert len(found) >= 30
    cells = [cell for line in re.findall(r"^\|(.*)\|$", text, re.MULTILINE) for cell in line.split("|")]
    for sentence in [*found, *cells]:
        assert len(sentence.split()) <= 25, sentence
