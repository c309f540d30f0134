"""The benchmark of training steps: its batches vary as they should, and a small run writes what it measured."""

import json

import torch

from benchmarks import machine_bound, reporting, training
from benchmarks.scaled_model import scaled_config


def test_batches_are_unequal_and_hold_chats():
    config = scaled_config(4, 36)
    batch = training.draw_batch(config, 10)
    lengths = batch["attention_mask"].sum(-1)
    assert (batch["embodiment_ids"] == -1).sum() == 3
    assert len(lengths.unique()) > 5
    assert batch["image_grid_thw"].prod(-1).sum() == len(batch["pixel_values"])
    images = (batch["input_ids"] == config.image_token_id).sum()
    assert images == batch["image_grid_thw"].prod(-1).sum() // 4, "a token for every four patches"
    assert torch.equal(batch["pixel_values"], training.draw_batch(config, 10)["pixel_values"]), "the same every time"


def test_a_run_without_padding_does_less_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    monkeypatch.setattr(training, "keep_freed_memory", lambda: None)  # it would hold for all tests of this process
    monkeypatch.setattr(machine_bound, "CACHE_BYTES", 2**20)
    monkeypatch.setattr(training, "GEMM_SHAPES", ((8, 64, 64),))
    monkeypatch.setattr(training, "CHAT_SIDES", (224,))
    monkeypatch.setattr(training, "VARIANTS", {name: training.VARIANTS[name] for name in ("padded", "padding-free")})
    training.main(["--depth", "36", "--batch-size", "2", "--repeats", "1", "--device", "cpu", "--dtype", "float32"])
    result = json.loads((tmp_path / "training.json").read_text())
    assert result["padding_share"] > 0
    steps = result["devices"][result["device"]]["steps"]
    assert steps["padding-free"]["gflops_per_step"] < steps["padded"]["gflops_per_step"]
    free = steps["padding-free"]
    assert free["share_of_bound"] == free["useful_share_of_bound"] > 0
    assert steps["padded"]["useful_share_of_bound"] < steps["padded"]["share_of_bound"]
    assert free["tokens_per_second"] > free["samples_per_second"] > 0
    assert "real tokens" in capsys.readouterr().out
