"""`benchmarks.scaling` at tiny scale: how counted work grows, and what is written."""

import json

import pytest
import torch

from benchmarks import reporting, scaling
from benchmarks.machine_bound import MachineBound


def sweep(name, values):
    rows = scaling.measure_sweep(name, values, "tiny", torch.float32, "cpu", 1)
    assert [row["value"] for row in rows] == list(values)
    assert all(row["seconds"] > 0 for row in rows)
    return [row["gflop"] for row in rows], [row["weight_gbytes"] for row in rows]


def test_work_grows_by_the_same_amount_with_every_flow_step():
    flops, weights = sweep("steps", (1, 2, 4))
    assert flops[2] - flops[1] == pytest.approx(2 * (flops[1] - flops[0]), rel=1e-9)
    assert weights[2] - weights[1] == pytest.approx(2 * (weights[1] - weights[0]), rel=1e-9)


def test_a_batch_multiplies_the_arithmetic_and_reads_the_weights_once():
    flops, weights = sweep("batch", (1, 3))
    assert flops[1] == pytest.approx(3 * flops[0], rel=0.01)  # timestep tokens are made once for the batch
    assert weights[1] == pytest.approx(weights[0], rel=1e-9)


def test_every_thought_token_reads_the_language_model_once_more():
    flops, weights = sweep("thought", (2, 4, 6))
    model, _ = scaling.make_call("tiny", scaling.BASE, torch.float32, "cpu")
    language = sum(p.nbytes for p in model.vlm.model.language_model.layers.parameters() if p.ndim == 2)
    vocabulary = model.get_output_embeddings().weight.nbytes
    for less, more in ((0, 1), (1, 2)):
        grown = (weights[more] - weights[less]) * 1e9
        biases = grown - 2 * (language + vocabulary)
        assert 0 <= biases < 0.02 * grown
        assert flops[more] > flops[less]


def test_a_resolution_that_the_vision_tower_cannot_cut_is_refused():
    with pytest.raises(ValueError, match="resolution: expected a multiple of 28 px, got 230"):
        scaling.make_call("tiny", {**scaling.BASE, "resolution": 230}, torch.float32, "cpu")


def test_times_stand_beside_what_the_machine_allows():
    row = {"value": 1, "gflop": 2.0, "weight_gbytes": 3.0, "seconds": 6.0}
    (bounded,) = scaling.with_bounds([row], MachineBound(flops_per_second=1e9, bytes_per_second=1e9))
    assert bounded == {**row, "flop_seconds": 2.0, "weight_seconds": 3.0, "share_of_bound": 0.5}


def test_table_figures_and_plot(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib (extra train) is not installed")
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    options = ["--scale", "tiny", "--dtype", "float32", "--device", "cpu", "--repeats", "1", "--points", "2"]
    scaling.main([*options, "--sweeps", "views", "chunk"])
    (section,) = json.loads((tmp_path / "scaling_tiny.json").read_text())["devices"].values()
    assert {name: [row["value"] for row in rows] for name, rows in section["sweeps"].items()} == {
        "views": [1, 2],
        "chunk": [10, 25],
    }
    assert section["settings"]["base"] == scaling.BASE
    assert (tmp_path / "scaling_tiny_cpu.png").read_bytes().startswith(b"\x89PNG")
    assert "weights GB" in capsys.readouterr().out
