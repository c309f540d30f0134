"""The bound that shares are measured against: counted work equals work derived by hand, limits are positive."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import machine_bound, reporting
from benchmarks.machine_bound import MachineBound, Work, counting


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_linear_layer_is_counted_once_per_use_with_its_weights(device):
    layer = nn.Linear(8, 16, device=device)
    with counting(layer) as count, torch.no_grad():
        for _ in range(3):
            layer(torch.empty(5, 8, device=device))
    assert count.work == Work(3 * 2 * 5 * 8 * 16, 3 * 4 * (8 * 16 + 16))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_counted_on_the_cpu_forward_and_backward(masked):
    query, key, value = (torch.randn(2, 3, tokens, 8, requires_grad=True) for tokens in (5, 7, 7))
    product = 2 * 2 * 3 * 5 * 7 * 8
    with reporting.FlopCount() as count:
        out = F.scaled_dot_product_attention(query, key, value, torch.ones(1, 1, 5, 7) if masked else None)
        assert count.total == 2 * product
        out.sum().backward()
    assert count.total == (2 + 5) * product


def test_the_bound_is_the_slower_of_arithmetic_and_memory():
    bound = MachineBound(flops_per_second=100.0, bytes_per_second=10.0)
    assert bound.seconds(Work(flops=200, weight_bytes=10)) == 2.0
    assert bound.seconds(Work(flops=200, weight_bytes=50)) == 5.0


def test_an_unknown_dtype_names_those_that_there_are():
    with pytest.raises(ValueError, match=r"dtype: expected one of \['bfloat16', 'float16', 'float32'\], got 'half'"):
        machine_bound.dtype_of("half")


def test_results_of_another_device_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    monkeypatch.setattr(machine_bound, "GEMM_SHAPES", ((4, 32, 32), (64, 64, 64)))
    reporting.write_section("machine_bound", "another GPU", {"ratio": 2.0, "float32": {}}, {})
    machine_bound.main(["--device", "cpu", "--dtype", "float32", "--repeats", "1"])
    content = json.loads((tmp_path / "machine_bound.json").read_text())
    assert content["device"] == machine_bound.device_name()
    assert set(content["devices"]) == {"another GPU", content["device"]}
    assert "ratio" not in content, "the top level holds the last run's figures only"
    figures = content["devices"][content["device"]]["float32"]
    assert figures["gflops_per_second"] == max(figures["gflops_per_second_by_shape"].values()) > 0
    assert figures["gbytes_per_second"] > 0
    assert "64x64x64" in capsys.readouterr().out
