"""The jerk limit: its plans against linear programming, and motions worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from syvla.serving.contract.action_limits import ActionLimits, CommandLimiter
from syvla.serving.contract.jerk_limit import Bounds, stopping_plan


def bounds(acceleration: float, jerk: float) -> Bounds:
    free = np.full(1, np.inf)
    return Bounds(-free, free, free, np.array([acceleration]), np.array([jerk]))


def can_stop(steps: int, change: float, acceleration: float, most: float, jerk: float) -> bool:
    """Whether a linear program finds accelerations that stop within so many steps."""
    if steps == 0:
        return abs(change) < 1e-9 and abs(acceleration) <= jerk
    differences = np.eye(steps + 1, steps) - np.eye(steps + 1, steps, -1)  # a_k - a_(k-1), k = 1 ... steps + 1
    before = np.zeros(steps + 1)
    before[0] = acceleration
    upper = np.concatenate([jerk + before, jerk - before])
    most = None if np.isinf(most) else most
    found = linprog(
        np.zeros(steps),
        A_ub=np.concatenate([differences, -differences]),
        b_ub=upper,
        A_eq=np.ones((1, steps)),
        b_eq=[-change],
        bounds=[(None if most is None else -most, most)] * steps,
    )
    return found.status == 0


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-2, 2), st.floats(-1, 1), st.sampled_from([0.07, 0.25, 1.0, np.inf]), st.sampled_from([0.06, 0.25, 0.9])
)
def test_a_plan_stops_within_acceleration_and_jerk_in_the_fewest_steps(change, share, most, jerk):
    acceleration = share * min(most, 1.0)
    plan = stopping_plan(np.array([change]), np.array([acceleration]), bounds(most, jerk))[0][0]
    whole = np.concatenate([[acceleration], plan, [0.0]])
    assert np.abs(plan).max(initial=0) <= most + 1e-9
    assert np.abs(np.diff(whole)).max() <= jerk + 1e-9
    assert change + plan.sum() == pytest.approx(0, abs=1e-7)
    steps = len(np.trim_zeros(plan, "b"))
    assert can_stop(len(plan), change, acceleration, most, jerk)
    assert steps == 0 or not can_stop(steps - 1, change + 1e-6 * np.sign(change), acceleration, most, jerk)


def test_a_motion_from_rest_by_hand():
    """Jerk 1 from rest to a target 16 away: accelerations 1, 2, 1, 0, -1, -2, -1, which is the fastest way there."""
    limiter = CommandLimiter(ActionLimits.of({"max_jerk": [1.0]}, 1))
    commands = [float(limiter.limit(np.array([t]), np.zeros(1))[0][0]) for t in [0.0] + [16.0] * 9]
    assert commands == pytest.approx([0, 1, 4, 8, 12, 15, 16, 16, 16, 16], abs=1e-5)


@pytest.mark.parametrize(("target", "end"), [(1.0, 1.0), (5.0, 1.0), (-5.0, -1.0)])
def test_a_dimension_reaches_its_target_or_its_end_and_rests_there(target, end):
    entry = {"low": [-1], "high": [1], "max_step": [0.2], "max_acceleration": [0.05], "max_jerk": [0.01]}
    limiter = CommandLimiter(ActionLimits.of(entry, 1))
    commands = [float(limiter.limit(np.array([t]), np.zeros(1))[0][0]) for t in [0.0] + [target] * 40]
    assert np.abs(commands).max() <= 1
    assert np.all(np.diff(commands) * np.sign(target) >= -1e-6), "it never turns back"
    assert commands[-20:] == pytest.approx([end] * 20, abs=1e-5)


def test_a_moving_target_is_caught_up_with():
    entry = {"max_step": [0.2], "max_acceleration": [0.05], "max_jerk": [0.01]}
    limiter = CommandLimiter(ActionLimits.of(entry, 1))
    limiter.limit(np.array([0.0]), np.zeros(1))
    targets = 0.5 + 0.1 * np.arange(100)
    commands = [float(limiter.limit(np.array([t]), np.zeros(1))[0][0]) for t in targets]
    assert np.abs(commands - targets)[-20:].max() < 1e-5


def test_a_motion_within_the_limits_is_passed_on_as_it_came():
    """Smooth motions of many joints at once, whose own differences say that they are within the limits."""
    time = np.arange(80)[:, None]
    speed, size = np.array([0.05, 0.1, 0.15, 0.2]), np.array([1.0, 0.4, 0.2, 0.1])
    motion = np.float32(size * (1 - np.exp(-((time / 40) ** 4))) * np.cos(speed * time))
    assert np.abs(np.diff(motion.astype(np.float64), 3, axis=0, prepend=np.zeros((3, 4)))).max() < 0.0099
    entry = {name: [limit] * 4 for name, limit in {"max_step": 0.3, "max_acceleration": 0.05, "max_jerk": 0.01}.items()}
    limiter = CommandLimiter(ActionLimits.of({**entry, "low": [-1.5] * 4, "high": [1.5] * 4}, 4))
    for target in motion:
        command, notes = limiter.limit(target, np.zeros(4))
        np.testing.assert_array_equal(command, target)
        assert notes == []


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 4, 12]))
def test_narrow_ranges_and_hard_targets_never_contradict_the_jerk(seed, held):
    """Targets far beyond ranges from a fiftieth of a step to many steps; each target stays for `held` steps."""
    half = np.array([0.001, 0.01, 0.03, 0.1, 0.5, 3.0])
    limits = {"max_step": 0.05, "max_acceleration": 0.02, "max_jerk": 0.008}
    entry = {"low": (-half).tolist(), "high": half.tolist(), **{name: [limit] * 6 for name, limit in limits.items()}}
    limiter = CommandLimiter(ActionLimits.of(entry, 6))
    targets = np.random.default_rng(seed).uniform(-2, 2, (5 + 60 // held, 6)).repeat(held, 0)
    commands = [limiter.limit(target, np.zeros(6))[0] for target in [np.zeros(6), *targets]]
    commands = np.array(commands, np.float64)
    assert (np.abs(commands) <= np.float32(half)).all()
    for order, limit in enumerate(limits.values(), start=1):
        assert np.abs(np.diff(commands, order, axis=0)).max() <= limit + 1e-6
    assert not limiter.gave_way.total()


def test_a_slow_start_is_smooth_too():
    entry = {"max_step": [0.1], "max_jerk": [0.02], "slow_start_steps": 20}
    limiter = CommandLimiter(ActionLimits.of(entry, 1))
    commands = np.array([float(limiter.limit(np.array([t]), np.zeros(1))[0][0]) for t in [0.0] + [9.0] * 30])
    steps = np.arange(1, 31)
    assert (np.diff(commands) <= 0.1 * np.minimum(1, (steps + 1) / 20) + 1e-6).all()
    assert np.abs(np.diff(commands, 3)).max() <= 0.02 + 1e-6
    assert np.diff(commands)[-1] == pytest.approx(0.1, abs=1e-4)
