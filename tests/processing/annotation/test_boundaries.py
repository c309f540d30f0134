"""Boundaries out of a motion whose grasp and rest are known."""

import numpy as np

from syvla.processing.annotation.boundaries import gripper_dimensions, motion_boundaries, speeds, value_ranges

FPS = 20
NAMES = ["joint_1", "joint_2", "gripper"]


def minimum_jerk(start, stop, frames):
    """The smoothest motion between two places at rest."""
    t = np.linspace(0, 1, frames)
    return start + (stop - start) * (10 * t**3 - 15 * t**4 + 6 * t**5)


def pick_and_place():
    """Reach in 2 s, close in 0.3 s, carry in 2 s with a stop in the middle, open; grasp at frame 40, release at 86."""
    joint = np.concatenate([minimum_jerk(0, 1, 40), np.ones(6), minimum_jerk(1, 0.4, 20), minimum_jerk(0.4, -1, 20),
                            -np.ones(6), minimum_jerk(-1, 0, 40)])  # fmt: skip
    gripper = np.concatenate([np.ones(40), np.linspace(1, 0, 6), np.zeros(40), np.linspace(0, 1, 6), np.ones(40)])
    return np.stack([joint, 0.5 * joint, gripper], axis=1).astype(np.float32)


def boundaries(states):
    return motion_boundaries(states, NAMES, value_ranges(states), np.nanquantile(states, 0.01, axis=0), FPS)


def test_grasp_release_and_the_stop_between_them_are_found():
    found = boundaries(pick_and_place())
    assert [one.reason for one in found] == ["start", "gripper falls", "rest", "gripper rises"]
    assert found[0].frame == 0
    for boundary, expected in zip(found[1:], (43, 66, 89), strict=True):
        assert abs(boundary.frame - expected) <= 3, boundary


def test_a_hold_and_an_even_motion_have_no_boundary():
    assert [one.frame for one in boundaries(np.zeros((50, 3), np.float32))] == [0]
    even = np.stack([np.linspace(0, 1, 60)] * 2 + [np.ones(60)], axis=1).astype(np.float32)
    assert [one.frame for one in boundaries(even)] == [0]
    assert [one.frame for one in boundaries(pick_and_place()[:1])] == [0]


def test_a_gripper_that_trembles_about_the_middle_does_not_count():
    states = pick_and_place()
    states[:, 2] = 0.5 + 0.1 * np.sin(np.arange(len(states)))
    ranges = np.array([2.0, 1.0, 1.0])
    found = motion_boundaries(states, NAMES, ranges, np.zeros(3), FPS)
    assert not [one for one in found if "gripper" in one.reason]


def test_values_that_are_not_finite_are_left_out():
    states = pick_and_place()
    states[10] = np.nan
    assert [one.reason for one in boundaries(states)][:2] == ["start", "gripper falls"]


def test_speed_is_in_ranges_per_second():
    states = np.stack([np.linspace(0, 3, 31), np.zeros(31), np.ones(31)], axis=1)  # 3 units in 1.5 s
    speed = speeds(states, np.array([3.0, 0.0, 0.0]), FPS)
    np.testing.assert_allclose(speed, 1 / 1.5, rtol=1e-6)


def test_grippers_are_known_by_their_names():
    assert gripper_dimensions(["left_gripper", "waist", "right_finger_joint", "Grip", "elbow"]) == [0, 2, 3]
