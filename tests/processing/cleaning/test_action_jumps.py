"""Spikes: what is flagged and what never is, whatever the units, the frame rate and the wrapping of angles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syvla.processing.cleaning.action_jumps import SpikeLimits, spike_heights

SPEED = 2.5


def limits(actions, starts=(0,), fps=30.0, **options):
    return SpikeLimits.of(actions, starts, fps, **{"seconds": 0.07, "speed": SPEED, "floor": 0.05, **options})


def flagged(actions, starts=(0,), fps=30.0, **options):
    """(frame, dimension) of every flagged value."""
    found = limits(actions, starts, fps, **options).heights(actions)
    return [(int(frame), int(dimension)) for frame, dimension in np.argwhere(found)]


def sway(length, period, amplitude=1.0, phase=0.0):
    """A sine of `period` frames, (length, 1); its steps are at most amplitude * 2 pi / period."""
    return amplitude * np.sin(2 * np.pi * np.arange(length) / period + phase)[:, None]


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(st.floats(0, 10), min_size=2, max_size=200),
    sign=st.sampled_from([-1, 1]),
    fps=st.sampled_from([5, 10, 30, 50, 100]),
)
def test_what_never_turns_back_is_never_flagged(steps, sign, fps):
    assert not flagged(sign * np.cumsum(steps)[:, None], fps=fps)


@settings(deadline=None, max_examples=60)
@given(
    levels=st.lists(st.integers(-5, 5), min_size=2, max_size=40),
    fps=st.sampled_from([10, 30, 50]),
    extra=st.integers(1, 4),
)
def test_levels_held_longer_than_a_spike_are_never_flagged(levels, fps, extra):
    longest = max(1, int(0.07 * fps))
    assert not flagged(np.repeat(np.array(levels, float), longest + extra)[:, None], fps=fps)


@settings(deadline=None, max_examples=60)
@given(
    period=st.floats(4, 500), amplitude=st.floats(1e-3, 1e3), phase=st.floats(0, 6.3), fps=st.sampled_from([10, 30, 50])
)
def test_a_steady_oscillation_is_never_flagged(period, amplitude, phase, fps):
    assert not flagged(sway(400, period, amplitude, phase), fps=fps)


@settings(deadline=None, max_examples=60)
@given(
    period=st.floats(20, 200),
    frame=st.integers(3, 396),
    side=st.sampled_from([-1, 1]),
    factor=st.floats(1.05, 20),
    scale=st.floats(1e-3, 1e3),
    offset=st.floats(-100, 100),
)
def test_a_spike_beyond_the_limit_is_found_in_any_units(period, frame, side, factor, scale, offset):
    clean = sway(400, period)
    step = 2 * np.pi / period  # the steepest; both neighbors are two steps apart, at most half of the height
    height = factor * max(SPEED * step, 0.05 * 2.0, 4 * step) + step
    actions = clean.copy()
    actions[frame] += side * height
    assert flagged(scale * actions + scale * offset) == [(frame, 0)]


def test_the_limit_follows_the_frame_rate():
    slow, fast = (limits(sway(400 * fps // 10, 40 * fps / 10), fps=fps).limit[0] for fps in (10, 50))
    assert slow == pytest.approx(SPEED * 2 * np.sin(np.pi / 40), rel=0.02)  # largest step of the sine, at 10 Hz
    assert fast == pytest.approx(0.05 * 2, rel=0.02)  # at 50 Hz the share of the range is more


def test_the_longest_spike_follows_the_frame_rate():
    for fps, longest in ((10, 1), (30, 2), (50, 3), (100, 7)):
        actions = np.zeros((300, 2))
        actions[:, 1] = np.linspace(0, 1, 300)
        actions[100 : 100 + longest, 0] = 1.0
        assert flagged(actions, fps=fps) == [(frame, 0) for frame in range(100, 100 + longest)]
        actions[100 : 101 + longest, 0] = 1.0
        assert not flagged(actions, fps=fps)


def test_wrapping_an_angle_changes_nothing():
    for period in (2 * np.pi, 360.0):
        unwrapped = sway(600, 150, 0.9 * period)
        unwrapped[200] += 0.3 * period
        wrapped = (unwrapped + period / 2) % period - period / 2
        assert (np.abs(np.diff(wrapped[:, 0])) > 0.9 * period).sum() > 4  # it does wrap
        assert flagged(wrapped) == flagged(unwrapped) == [(200, 0)]


def test_a_spike_of_a_whole_turn_is_one_where_the_dimension_does_not_wrap():
    for height in (2 * np.pi, 360.0):
        actions = 0.05 * height * sway(400, 100)
        actions[123] += height
        assert flagged(actions) == [(123, 0)]


def test_noise_around_the_wrap_is_no_spike():
    rng = np.random.default_rng(0)
    angle = np.pi + rng.normal(0, 0.01, (500, 1))
    wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
    assert (np.abs(np.diff(wrapped[:, 0])) > 6).sum() > 100
    assert not flagged(wrapped)


def test_white_noise_and_the_last_digit_of_a_resting_joint_are_no_spikes():
    rng = np.random.default_rng(1)
    actions = np.stack([rng.normal(0, 0.02, 3000), np.zeros(3000), 1.5 * sway(3000, 300)[:, 0]], 1)
    actions[rng.integers(1, 2999, 20), 1] = 0.003
    assert not flagged(actions)


def test_joystick_nudges_of_a_frame_are_how_the_dimension_moves():
    actions = np.zeros((1000, 1))
    actions[10::40] = 1.0  # 2.5% of the frames
    assert limits(actions).limit[0] >= SPEED
    assert not flagged(actions)
    rare = np.zeros((1000, 2))
    rare[:, 1] = np.linspace(0, 1, 1000)
    rare[500, 0] = 1.0
    assert flagged(rare) == [(500, 0)]


def test_at_most_one_frame_in_a_hundred_of_a_dimension_is_removed():
    rng = np.random.default_rng(2)
    actions = 1e-3 * sway(1000, 100).repeat(2, 1)
    frames = rng.choice(np.arange(5, 995, 4), 20, replace=False)
    actions[frames, 0] = rng.uniform(1, 2, 20)
    found = limits(actions)
    assert found.common == (0,) or not found.heights(actions).any()


def test_spikes_do_not_reach_over_episodes_and_values_that_are_not_finite_are_passed_over():
    actions = sway(300, 100)
    actions[150] = 5.0  # the only frame of an episode
    assert not flagged(actions, starts=(0, 150, 151))[1:]
    found = limits(actions, (0, 150, 151))
    assert not found.heights(actions[:150]).any()
    assert not found.heights(actions[150:151]).any()
    actions[30], actions[60] = np.nan, np.inf
    assert not limits(actions, (0, 150, 151)).heights(actions[:150]).any()


def test_heights_are_measured_from_the_nearer_neighbor():
    values = np.array([0.0, 0.0, 3.0, 1.0, 1.0, -4.0, -4.5, 1.0])[:, None]
    assert spike_heights(values, 1)[:, 0].tolist() == [0, 0, 2, 0, 0, 0, 0, 0]
    assert spike_heights(values, 2)[:, 0].tolist() == [0, 0, 2, 0, 0, 5, 5, 0]
