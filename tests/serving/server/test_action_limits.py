"""Joint and rate limits: what leaves the server lies within them, and what lay within them is untouched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syvla.serving.server.action_limits import ActionLimits, UnsafeActions, load_limits

FINITE = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=8), st.tuples(FINITE, FINITE), st.booleans())
def test_all_actions_lie_within_the_limits(rows, state, from_state):
    limits = ActionLimits.of(
        {"low": [-5, None], "high": [5, 7], "max_step": [None, 0.5], "start_from_state": from_state}, 2
    )
    actions, state = np.array(rows, np.float32), np.array(state, np.float32)
    limited, notes = limits.apply(actions, state)
    assert limited[:, 0].min() >= -5
    assert limited.max(axis=0)[0] <= 5
    assert limited.max(axis=0)[1] <= 7 + 1e-3
    start = [min(state[1], 7)] if from_state else limited[:1, 1]
    assert np.abs(np.diff(limited[:, 1], prepend=start)).max() <= 0.5 + 1e-3
    assert bool(notes) == bool((limited != actions).any())
    again, _none = limits.apply(limited, state)
    np.testing.assert_allclose(again, limited, atol=1e-3)


def test_actions_within_the_limits_are_the_same_array():
    limits = ActionLimits.of({"low": [-1, -1], "max_step": [1, 1]}, 2)
    actions = np.zeros((3, 2), np.float32)
    limited, notes = limits.apply(actions, np.zeros(2, np.float32))
    assert limited is actions
    assert notes == []


def test_a_jump_from_the_present_state_is_a_rate_violation_where_actions_are_target_states():
    actions, state = np.full((2, 1), 3.0, np.float32), np.zeros(1, np.float32)
    entry = {"max_step": [1.0], "start_from_state": True}
    limited, notes = ActionLimits.of(entry, 1, ["elbow"]).apply(actions, state)
    np.testing.assert_array_equal(limited[:, 0], [1, 2])
    assert notes == ["rate limit: elbow, 2 of 2 steps, by up to 2"]
    assert ActionLimits.of({"max_step": [1.0]}, 1).apply(actions, state)[1] == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_without_any_limits(bad):
    actions = np.zeros((3, 2), np.float32)
    actions[1, 0] = bad
    with pytest.raises(UnsafeActions, match=r"expected finite numbers, got -?(nan|inf) for action 0 at step 1"):
        ActionLimits.of(None, 2).apply(actions, np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"lo": [0]}, r"unknown fields \['lo'\]"),
        ({"on_violation": "ignore"}, "on_violation 'ignore'"),
        ({"low": [0, 0]}, r"action_limits.low: expected a list of 1 numbers or nulls"),
        ({"high": ["x"]}, r"action_limits.high: expected numbers or nulls"),
        ({"low": [float("nan")]}, r"action_limits.low: expected numbers or nulls, got \[nan\]"),
        ({"low": [2], "high": [1]}, "low <= high"),
        ({"max_step": [0]}, "max_step > 0"),
    ],
)
def test_damaged_limits_are_named(entry, message):
    with pytest.raises(ValueError, match=message):
        ActionLimits.of(entry, 1)


def test_limits_come_from_a_file(tmp_path):
    path = tmp_path / "limits.yaml"
    path.write_text("arm:\n  low: [-1, null]\n  on_violation: refuse\n")
    limits = ActionLimits.of(load_limits(path)["arm"], 2)
    assert limits.describe() == {"low": [-1.0, None], "on_violation": "refuse", "start_from_state": False}
    assert ActionLimits.of(None, 2).describe() == {}
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="expected a map from embodiment to limits"):
        load_limits(path)
