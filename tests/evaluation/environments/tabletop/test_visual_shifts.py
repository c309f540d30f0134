"""Visual shifts: the pictures change, and nothing else does."""

import numpy as np
import pytest

from syvla.evaluation.environments import make_environment, make_expert
from syvla.evaluation.environments.demonstration import demonstrate
from syvla.evaluation.environments.tabletop.visual_shifts import CAMERA_OFFSET, CAMERA_TURN, SHIFTS


def pictures(env, seed):
    return env.reset(seed=seed)[0]["images"]


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_changes_pictures_and_not_the_episode(shift):
    plain, shifted = make_environment("tabletop", "lift"), make_environment("tabletop", "lift", shift=shift)
    for seed in (0, 1, 0):
        before, after = plain.reset(seed=seed)[0], shifted.reset(seed=seed)[0]
        np.testing.assert_array_equal(before["state"], after["state"])
        assert plain.unwrapped.layout == shifted.unwrapped.layout
        difference = np.abs(before["images"]["head"].astype(int) - after["images"]["head"])
        assert difference.mean() > 2
        wrist = np.abs(before["images"]["left_wrist"].astype(int) - after["images"]["left_wrist"]).max()
        assert (wrist == 0) == (shift == "camera"), "the cameras at the wrists stay where they are"
    expert = make_expert(shifted)
    assert demonstrate(shifted, expert, seed=3).success


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_seed_means_one_picture_whatever_came_before(shift):
    one, other = (make_environment("tabletop", "lift", shift=shift) for _ in range(2))
    first = pictures(one, 5)
    for seed in (9, 5, 5):
        again = pictures(other, seed)
    assert all(np.array_equal(first[view], again[view]) for view in first)
    assert not np.array_equal(first["head"], pictures(other, 6)["head"])


def test_the_camera_stays_within_its_bounds_over_many_episodes_of_one_scene():
    env = make_environment("tabletop", "lift", shift="camera")
    plain = make_environment("tabletop", "lift")
    plain.reset(seed=0)
    home = plain.unwrapped.model.camera("head")
    for seed in range(30):
        env.reset(seed=seed)
        camera = env.unwrapped.model.camera("head")
        assert np.abs(camera.pos - home.pos).max() <= CAMERA_OFFSET
        angle = 2 * np.arccos(min(1.0, abs(float(camera.quat @ home.quat))))
        assert angle <= np.sqrt(3) * CAMERA_TURN * 1.01


def test_an_unknown_shift_is_named():
    with pytest.raises(
        ValueError, match=r"shift: expected None or one of \['lighting', 'camera', 'background'\], got 'fog'"
    ):
        make_environment("tabletop", "lift", shift="fog")
