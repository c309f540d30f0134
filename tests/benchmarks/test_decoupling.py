"""The benchmark's variants do what their names say, counted on a model of one layer per part."""

import argparse
import json

import pytest
import torch

from benchmarks import decoupling, reporting
from benchmarks.decoupling import NAMES, VARIANTS, Step, Variant
from benchmarks.reporting import FlopCount
from benchmarks.scaled_model import make_batch, scaled_config
from syvla.modeling_syvla import SyVLAConfig

OPTIONS = argparse.Namespace(width=4, depth=8, device="cpu", dtype="float32")


def test_width_and_depth_one_are_the_papers_size():
    ours, paper = scaled_config(1, 1), SyVLAConfig()
    for part in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"):
        assert getattr(ours.get_text_config(), part) == getattr(paper.get_text_config(), part), part
    assert ours.vlm_config.vision_config.fullatt_block_indexes == paper.vlm_config.vision_config.fullatt_block_indexes
    assert ours.expert_config.mlp_hidden_size == paper.expert_config.mlp_hidden_size
    assert ours.expert_config.num_hidden_layers == paper.expert_config.num_hidden_layers == 15
    assert ours.expert_vision_config.num_hidden_layers == paper.expert_vision_config.num_hidden_layers


def test_every_variant_is_compared_with_the_same_step_without_decoupling():
    assert all(NAMES[variant.baseline] in VARIANTS for variant in VARIANTS.values())
    assert len(NAMES) == len(VARIANTS)


@pytest.fixture(scope="module")
def flops():
    """FLOPs of the variants' expert alone: the VLM's hidden states are given."""
    models = decoupling.build_models(OPTIONS)
    batch = make_batch(models["all"].config, 1)
    hidden = torch.randn(1, batch["input_ids"].shape[1], 2048 // OPTIONS.width, requires_grad=True)
    counts = {}
    for name, variant in VARIANTS.items():
        if variant.chats or variant.checkpointing:
            continue
        step = Step(models, variant, batch)
        step.model.encode = lambda *_: hidden
        with FlopCount() as counter:
            step()
        counts[name] = counter.total
    return counts


def test_a_saving_that_is_taken_away_costs_flops(flops):
    assert flops["exact"] > flops["off"]
    assert flops["suffix, off"] < flops["off"], "the prefix does not attend to the condition"
    shared = flops["suffix"] - flops["suffix, off"]
    assert shared < 0.3 * (flops["exact"] - flops["off"])
    for name, variant in VARIANTS.items():
        if variant.without and not variant.chats:
            assert flops[name] > 1.02 * flops[NAMES[Variant(variant.scope)]], name


def test_the_run_writes_both_goals(tmp_path, monkeypatch, capsys):
    """Whole, with the clock, on steps that do nothing."""
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    monkeypatch.setattr(decoupling, "keep_freed_memory", lambda: None)  # it would hold for all tests of this process
    monkeypatch.setattr(decoupling, "Step", lambda models, variant, batch: lambda: torch.ones(8, 8) @ torch.ones(8, 8))
    decoupling.main(["--depth", "36", "--repeats", "2", "--no-paper-size", "--device", "cpu", "--dtype", "float32"])
    result = json.loads((tmp_path / "decoupling.json").read_text())
    assert {"ratio_exact", "ratio_shared_prefix", "counted_ratio_exact", "counted_ratio_shared_prefix"} <= result.keys()
    assert result["counted_ratio_exact"] == 1.0
    section = result["devices"][result["device"]]
    assert section["contributions"].keys() == {"image features", "weight gradients", "prefix"}
    assert section["seconds"].keys() == VARIANTS.keys()
    assert "x counted at the paper's size" in capsys.readouterr().out
