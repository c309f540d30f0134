"""A robot behind a network that delays, drops, reorders, repeats and cuts; ten minutes of it: `benchmarks.watchdog_soak`."""

import pytest

from benchmarks.watchdog_soak import soak


@pytest.mark.parametrize("seed", [0, 1])
def test_no_step_is_blocked_no_limit_exceeded_and_every_hold_reported(seed):
    found = soak(seconds=8, seed=seed)
    assert found["network"].keys() >= {"pass", "delay"}
    assert found["counts"]["chunk"] > 20
    assert found["wrong"] == 0
    assert found["not_the_next_action"] == found["reported"]
    assert found["largest_change"] <= found["max_step"] + 1e-6
    # 0.04 s were allowed; a step that waits for an answer would take two timeouts of 1 s. The machine may be late by itself.
    assert found["step_s"]["max"] < 1.0 + 2 * found["idle_late_s"]["max"]
