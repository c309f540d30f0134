"""Joint and rate limits: what leaves the server lies within them, and what lay within them is untouched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syvla.serving.contract.action_limits import ActionLimits, CommandLimiter, UnsafeActions, load_limits

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
        ({"max_jerk": [0.0]}, "max_jerk > 0"),
        ({"lo": [0]}, r"unknown fields \['lo'\]"),
        ({"on_violation": "ignore"}, "on_violation 'ignore'"),
        ({"low": [0, 0]}, r"action_limits.low: expected a list of 1 numbers or nulls"),
        ({"high": ["x"]}, r"action_limits.high: expected numbers or nulls"),
        ({"low": [float("nan")]}, r"action_limits.low: expected numbers or nulls, got \[nan\]"),
        ({"low": [2], "high": [1]}, "low <= high"),
        ({"max_step": [0]}, "max_step > 0"),
        ({"max_acceleration": [-1]}, "max_acceleration > 0"),
        ({"max_relative_target": [0]}, "max_relative_target > 0"),
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


@pytest.mark.parametrize("jerk", [None, 0.04])
@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12), min_size=1, max_size=6), st.data())
def test_no_sequence_of_chunks_exceeds_joint_range_rate_acceleration_or_jerk(jerk, chunks, data):
    """Whatever part of whatever chunk runs: the commands, the only thing that a robot sees, keep all limits."""
    entry = {"low": [-3], "high": [5], "max_step": [0.7], "max_acceleration": [0.15], "max_jerk": [jerk]}
    limits = ActionLimits.of(entry, 1)
    limiter, commands = CommandLimiter(limits), []
    for chunk in chunks:
        first = data.draw(st.integers(0, len(chunk) - 1))
        for action in chunk[first : data.draw(st.integers(first + 1, len(chunk)))]:
            command, notes = limiter.limit(np.array([action]), np.zeros(1))
            assert bool(notes) == (command[0] != np.float32(action))
            commands.append(float(command[0]))
        if data.draw(st.booleans()):
            limiter.new_episode()
    commands = np.array(commands)
    assert commands.min() >= -3
    assert commands.max() <= 5
    assert np.abs(np.diff(commands)).max(initial=0) <= 0.7 + 1e-5
    assert np.abs(np.diff(commands, 2)).max(initial=0) <= 0.15 + 1e-5
    if jerk:
        assert np.abs(np.diff(commands, 3)).max(initial=0) <= 0.04 + 1e-5
    assert not limiter.gave_way.total()


def test_a_dimension_brakes_in_time_and_reaches_its_end():
    limits = ActionLimits.of({"high": [1.0], "max_acceleration": [0.1]}, 1)
    limiter = CommandLimiter(limits)
    commands = [float(limiter.limit(np.array([target]), np.zeros(1))[0][0]) for target in [0.0] + [5.0] * 12]
    # By hand: 0.1, 0.2, 0.3 up to 0.6; then steps v, v - 0.1, v - 0.2 that cover the 0.4 that are left: v = 0.7 / 3.
    by_hand = [0, 0.1, 0.3, 0.6, 0.6 + 0.7 / 3, 0.6 + 1.1 / 3, 1.0, 1.0]
    np.testing.assert_allclose(commands[:8], by_hand, atol=1e-6)


def test_a_new_chunk_goes_on_from_the_commands_that_ran_before_it():
    limits = ActionLimits.of({"max_step": [0.5]}, 1)
    limited, notes = limits.apply(np.full((3, 1), 2.0, np.float32), np.zeros(1), np.array([[0.5], [1.0]], np.float32))
    np.testing.assert_array_equal(limited[:, 0], [1.5, 2.0, 2.0])
    assert notes == ["rate limit: action 0, 1 of 3 steps, by up to 0.5"]
    limited, _notes = limits.apply(np.full((3, 1), 2.0, np.float32), np.zeros(1), np.zeros((1, 1), np.float32), 1)
    np.testing.assert_array_equal(limited[1:, 0], [0.5, 1.0])


def test_a_target_is_never_farther_from_the_robot_than_allowed():
    limits = ActionLimits.of({"max_relative_target": [0.2, None], "max_step": [1, 1]}, 2)
    limiter = CommandLimiter(limits)
    command, notes = limiter.limit(np.array([1.0, 1.0]), np.zeros(2))
    np.testing.assert_array_equal(command, np.array([0.2, 1.0], np.float32))
    assert notes == ["relative target: action 0, 1 of 1 steps, by up to 0.8"]
    with pytest.raises(ValueError, match=r"they need 2 dimensions of it; got shape \(3,\)"):
        limiter.limit(np.zeros(2), np.zeros(3))


def test_an_episode_begins_at_the_state_or_at_the_last_command():
    entry = {"max_step": [0.1]}
    for start, expected in ((True, 4.1), (False, 0.1)):
        limiter = CommandLimiter(ActionLimits.of({**entry, "start_from_state": start}, 1))
        limiter.limit(np.array([0.0]), np.array([0.0]))
        limiter.new_episode()
        command, _notes = limiter.limit(np.array([9.0]), np.array([4.0]))  # a person has moved the arm to 4
        np.testing.assert_allclose(command, [expected], atol=1e-6)


def test_a_refused_command_leaves_the_last_one():
    limiter = CommandLimiter(ActionLimits.of({"max_step": [0.1], "on_violation": "refuse"}, 1))
    limiter.limit(np.array([0.0]), np.zeros(1))
    with pytest.raises(UnsafeActions, match="rate limit"):
        limiter.limit(np.array([1.0]), np.zeros(1))
    with pytest.raises(UnsafeActions, match="expected finite numbers"):
        limiter.limit(np.array([np.nan]), np.zeros(1))
    np.testing.assert_array_equal(limiter.last, [0.0])


def test_two_limits_at_once_are_the_tighter_ones():
    one = ActionLimits.of({"low": [-1, None], "max_step": [None, 2]}, 2)
    both = one.joined(
        ActionLimits.of({"low": [-2, 0], "high": [3, 3], "max_step": [1, 3], "on_violation": "refuse"}, 2)
    )
    assert both.describe() == {
        "low": [-1.0, 0.0],
        "high": [3.0, 3.0],
        "max_step": [1.0, 2.0],
        "on_violation": "refuse",
        "start_from_state": False,
    }
    assert ActionLimits.of(both.describe(), 2).describe() == both.describe()


def test_what_cannot_hold_gives_way_in_order_and_is_counted():
    """An arm at full speed, and someone narrows its range: the range holds, and what had to give way is named."""
    entry = {"max_step": [1.0], "max_acceleration": [0.25], "max_jerk": [0.125]}
    limiter = CommandLimiter(ActionLimits.of({**entry, "high": [100]}, 1))
    for target in [0.0] + [90.0] * 20:
        limiter.limit(np.array([target]), np.zeros(1))
    assert limiter.velocity == pytest.approx(1.0)
    assert not limiter.gave_way.total()
    narrower = CommandLimiter(ActionLimits.of({**entry, "high": [float(limiter.last[0]) + 0.5]}, 1))
    narrower.follow(limiter)
    commands, notes = [float(limiter.last[0])], []
    for _ in range(12):
        command, said = narrower.limit(np.array([90.0]), np.zeros(1))
        commands.append(float(command[0]))
        notes += said
    assert max(commands) <= commands[0] + 0.5
    assert np.abs(np.diff(commands)).max() <= 1 + 1e-5, "the rate goes before acceleration and jerk"
    assert "max_acceleration gave way: action 0, 0.625" in notes  # from 1 per step to 0.375, 0.125 and 0, which are 0.5
    assert narrower.gave_way["max_step"] == 0
    assert narrower.gave_way["max_acceleration"] >= 1
    assert narrower.gave_way["max_jerk"] >= 1


def test_a_target_near_the_robot_goes_before_the_rate_and_is_counted():
    limiter = CommandLimiter(ActionLimits.of({"max_relative_target": [0.2], "max_step": [0.1], "max_jerk": [0.1]}, 1))
    assert limiter.limit(np.array([0.0]), np.zeros(1))[1] == []
    command, notes = limiter.limit(np.array([0.0]), np.array([1.0]))  # the arm was pushed to 1
    np.testing.assert_array_equal(command, np.float32([0.8]))
    assert "max_step gave way: action 0, 0.8" in notes
    assert limiter.gave_way["max_step"] == 1
