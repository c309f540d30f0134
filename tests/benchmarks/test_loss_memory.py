"""The counted memory of the loss of answers: what a sum by hand gives, and what the committed check says."""

import json

import pytest

from benchmarks import loss_memory
from benchmarks.loss_memory import VOCABULARY, counted
from benchmarks.reporting import RESULTS


def test_all_logits_at_once_and_by_chunks_of_a_frozen_head():
    """Beyond the head in bfloat16: softmax, its gradient and that of the logits in float32; or those of one chunk."""
    width, tokens = 64, 2000
    cast = VOCABULARY * width * 2
    whole = counted("all at once", tokens, width, trained=False)
    assert whole - cast == pytest.approx(3 * 4 * tokens * VOCABULARY, rel=0.01)
    assert counted("by chunks", tokens, width, trained=False) - cast < 4 * 4 * 220 * VOCABULARY


def test_the_committed_count_is_within_five_percent_of_the_measured_loss():
    result = json.loads((RESULTS / "loss_memory.json").read_text(encoding="utf-8"))
    assert {(check["head"], check["way"]) for check in result["checks"]} == {
        (head, way) for head in ("trained", "frozen") for way in loss_memory.WAYS
    }
    for check in result["checks"]:
        assert check["counted"] == pytest.approx(check["measured"], rel=0.05), check
