"""Peaks of memory belong to the call that made them."""

import pytest
import torch

from benchmarks.process_memory import measure_memory


def test_a_peak_that_an_earlier_call_left_is_not_counted_again():
    large = measure_memory(lambda: torch.ones(64 * 2**20).sum(), "cpu")
    small = measure_memory(lambda: torch.ones(2**20).sum(), "cpu")
    if large is None or small is None:
        pytest.skip("the system does not say how much memory a process had at most")
    assert large.peak - large.before > 200 * 2**20
    assert small.peak - small.before < 100 * 2**20
