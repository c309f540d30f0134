"""The counted memory of a training step: parts that a sum by hand gives, and what the committed check says."""

import json
from pathlib import Path

import pytest

from benchmarks import memory
from benchmarks.scaled_model import scaled_config

RESULTS = Path(memory.__file__).parent / "results" / "memory.json"
SIZE = (8, 12)


@pytest.fixture(scope="module")
def full():
    return memory.count(scaled_config(*SIZE), "full", 2, False)


def test_weights_gradients_and_moments_of_float32(full):
    config = scaled_config(*SIZE)
    weights = sum(weight.numel() for weight in memory.build(config, "full").parameters())
    assert full.weights == pytest.approx(4 * weights, rel=1e-3)  # buffers besides
    assert full.gradients == 4 * weights
    assert full.optimizer == 8 * weights
    assert full.peak > full.weights + full.optimizer + full.activations


def test_checkpointing_keeps_less(full):
    less = memory.count(scaled_config(*SIZE), "full", 2, True)
    assert less.activations < full.activations
    assert (less.weights, less.gradients, less.optimizer) == (full.weights, full.gradients, full.optimizer)


def test_an_adapter_keeps_the_frozen_weights_in_two_bytes_and_moments_of_what_trains():
    config = scaled_config(*SIZE)
    adapted = memory.build(config, "LoRA")
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in adapted.parameters() if not weight.requires_grad)
    counted = memory.count(config, "LoRA", 1, False)
    assert counted.weights == pytest.approx(4 * trained + 2 * frozen, rel=1e-3)
    assert counted.gradients == 4 * trained
    assert counted.optimizer == 8 * trained
    packed = memory.count(config, "QLoRA", 1, False)
    assert packed.weights < counted.weights


def test_an_unknown_way_is_named():
    with pytest.raises(ValueError, match="way: expected one of full, frozen VLM, LoRA, QLoRA, got 'half'"):
        memory.build(scaled_config(*SIZE), "half")


def test_the_committed_count_is_within_five_percent_of_the_measured_step():
    checks = json.loads(RESULTS.read_text(encoding="utf-8"))["check"]
    assert set(checks) == set(memory.CHECKS)
    for name, figures in checks.items():
        assert figures["ratio"] == pytest.approx(figures["counted"] / figures["measured"])
        assert figures["ratio"] == pytest.approx(1, abs=0.05), name
