"""Batches within a token budget, and a thread that prepares them."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syvla.evaluation.vlm_benchmarks.batching import prefetch, token_budget_batches, windows


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 9), st.integers(1, 2000))
def test_every_row_is_in_one_batch_within_both_limits(lengths, rows, tokens):
    batches = token_budget_batches(lengths, rows, tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
    longest = [lengths[batch[0]] for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_sorting_saves_most_of_the_padding():
    lengths = [40, 400, 60, 380, 50, 390, 45, 410]
    padded = sum(len(b) * max(lengths[i] for i in b) for b in token_budget_batches(lengths, 4, 4000))
    assert padded == 4 * 410 + 4 * 60


def test_windows_cut_any_stream():
    assert list(windows(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(windows([], 3)) == []


def test_prefetch_works_ahead_but_not_far_ahead():
    prepared = []

    def prepare(item):
        prepared.append(item)
        yield item * 10

    results = prefetch(range(20), prepare, ahead=2)
    assert next(results) == 0
    deadline = time.monotonic() + 60
    while len(prepared) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert prepared == [0, 1, 2, 3], "one taken, two waiting, one that has no room"
    assert list(results) == [10 * i for i in range(1, 20)]


def test_an_error_of_the_thread_is_raised_where_results_are_taken_and_the_thread_ends():
    def prepare(item):
        if item == 2:
            raise ValueError("row 2 is damaged")
        yield item

    results = prefetch(range(5), prepare)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="row 2 is damaged"):
        next(results)
    abandoned = prefetch(range(100), lambda item: [item])
    next(abandoned)
    abandoned.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
