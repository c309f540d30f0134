"""Normalization: inverse, the ranges each mode promises, constant dimensions, exact statistics, errors."""

import numpy as np
import pytest
import torch

from syvla.processing.normalization import (
    MODES,
    nearly_constant,
    normalize,
    offset_and_scale,
    spread_floors,
    unnormalize,
)
from syvla.processing.robot_data.statistics import RunningStatistics


@pytest.fixture
def values() -> np.ndarray:
    generator = np.random.default_rng(0)
    data = generator.normal(size=(5000, 4)).astype(np.float32) * [1.0, 50.0, 1e-3, 0.0] + [0.0, -3.0, 0.5, 0.7]
    return data.astype(np.float32)


@pytest.fixture
def stats(values: np.ndarray) -> dict:
    running = RunningStatistics(4)
    for chunk in np.array_split(values, 7):
        running.update(chunk)
    return running.result()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_unnormalize_inverts_normalize(values, stats, mode, as_tensor):
    x = torch.from_numpy(values).reshape(50, 100, 4) if as_tensor else values.reshape(50, 100, 4)
    back = unnormalize(normalize(x, stats, mode), stats, mode)
    assert type(back) is type(x)
    assert back.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(back), np.asarray(x), rtol=1e-5, atol=2e-5)


def test_numpy_and_torch_agree(values, stats):
    for mode in MODES:
        np.testing.assert_array_equal(
            normalize(torch.from_numpy(values), stats, mode).numpy(), normalize(values, stats, mode)
        )


def test_each_mode_gives_its_range(values, stats):
    moving = slice(0, 3)
    standard = normalize(values, stats, "mean_std")[:, moving]
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(standard.std(0), 1, atol=1e-3)
    scaled = normalize(values, stats, "min_max")[:, moving]
    np.testing.assert_allclose([scaled.min(0), scaled.max(0)], [[-1] * 3, [1] * 3], atol=1e-5)
    inside = (np.abs(normalize(values, stats, "quantile")[:, moving]) <= 1 + 1e-5).mean(0)
    np.testing.assert_allclose(inside, 0.98, atol=1e-3)


@pytest.mark.parametrize("mode", ["mean_std", "quantile", "min_max"])
def test_constant_dimension_is_shifted_not_blown_up(values, stats, mode):
    assert np.abs(normalize(values, stats, mode)[:, 3]).max() < 1e-6
    moved = values.copy()
    moved[:, 3] += 0.01  # a joint that never moved in the data moves a little on the robot
    assert np.abs(normalize(moved, stats, mode)[:, 3]).max() < 0.011


def test_rarely_moving_dimension_takes_its_full_range_in_quantile_mode():
    gripper = np.zeros((1000, 1), np.float32)
    gripper[:3] = 85.0  # millimeters, open in 0.3% of frames
    running = RunningStatistics(1)
    running.update(gripper)
    normalized = normalize(gripper, running.result(), "quantile")
    assert normalized.min() == pytest.approx(-1)
    assert normalized.max() == pytest.approx(1)


def test_low_precision_and_integers(stats):
    x = torch.zeros(2, 4, dtype=torch.bfloat16)
    assert normalize(x, stats, "mean_std").dtype == torch.bfloat16
    assert normalize(np.zeros((2, 4), np.int64), stats, "mean_std").dtype == np.float32


@pytest.mark.parametrize(
    ("change", "mode", "message"),
    [
        ({}, "standard", "expected one of mean_std"),
        ({"q99": None}, "quantile", "needs 'q99', which is missing"),
        ({"mean": [0.0] * 3}, "mean_std", "equal lengths"),
        ({"std": [float("nan")] * 4}, "mean_std", "finite"),
        ({"std": [-1.0] * 4}, "mean_std", "negative spread"),
    ],
)
def test_bad_statistics_are_named(stats, change, mode, message):
    with pytest.raises(ValueError, match=message):
        normalize(np.zeros((1, 4), np.float32), {**stats, **change}, mode)


def test_mismatched_dimension_is_named(stats):
    with pytest.raises(ValueError, match=r"4 dimensions, got an array of shape \(2, 14\)"):
        normalize(np.zeros((2, 14), np.float32), stats, "mean_std")


# ---------------------------------------------------------------- nearly constant dimensions

# Published in openpi's issue 814: 1% and 99% quantiles of absolute joints in radians and a gripper. Joint 5 stands still.
OPENPI_814 = {
    "mean": [-0.96, -1.87, -1.85, -1.03, 1.5691, -1.48, 0.48],
    "std": [0.1, 0.2, 0.2, 0.07, 0.0003, 0.1, 0.4],
    "q01": [-1.1451605429965186, -2.242609221335103, -2.2571858448691624, -1.153324126746803, 1.568642928333805,
            -1.660688690313425, 0.036514735546843445],
    "q99": [-0.7886300352340484, -1.4988367923820078, -1.4468297973848614, -0.9084148509828917, 1.5696224851423788,
            -1.3030340120492672, 0.9370960097121583],
}  # fmt: skip


@pytest.mark.parametrize(("mode", "before"), [("quantile", -3204), ("mean_std", -5230)])
def test_a_joint_that_stood_still_does_not_explode(mode, before):
    """0 rad is 157 hundredths of a radian away from the joint's place; nothing else about the robot changes."""
    zeros = np.zeros(7)
    old = normalize(zeros, OPENPI_814, mode)
    assert round(old[4]) == before, "without a floor, as in older checkpoints"
    floored = {**OPENPI_814, "floor": spread_floors(OPENPI_814, mode, ["rad"] * 6 + [""])}
    new = normalize(zeros, floored, mode)
    assert new[4] == pytest.approx(-1.5691 / 0.01, rel=1e-3)
    np.testing.assert_array_equal(np.delete(new, 4), np.delete(old, 4))
    assert nearly_constant(floored, mode) == [4]
    np.testing.assert_allclose(unnormalize(new, floored, mode), zeros, atol=1e-9)


def test_floors_follow_the_units():
    stats = {"mean": np.zeros(8), "std": np.full(8, 0.02)}
    units = ["rad", "degrees", "m", "mm", "Millimeters", "rad/s", "none of these", ""]
    assert spread_floors(stats, "mean_std", units).tolist() == [0.01, 0.5, 0.001, 1.0, 1.0, 0.01, 0.0, 0.0]
    assert spread_floors(stats, "identity").tolist() == [0.0] * 8


def test_without_units_a_floor_is_relative_and_spares_small_steps_around_zero():
    """Meters beside degrees, and increments of tenths of millimeters, are motion; noise far from 0 is none."""
    pose = {"mean": [0.3, 0.0, 0.2, 90.0, 0.0, 45.0], "std": [0.1, 0.1, 0.1, 30.0, 30.0, 30.0]}
    increments = {"mean": [1e-5, 0.0, 0.0, 0.5], "std": [2e-4, 2e-4, 2e-4, 0.4]}
    for stats in (pose, increments):
        floored = {**stats, "floor": spread_floors(stats, "mean_std")}
        np.testing.assert_array_equal(offset_and_scale(floored, "mean_std")[1], stats["std"])
    still = {"mean": [20.0, 45.0, -30.0], "std": [20.0, 0.05, 25.0]}
    floored = {**still, "floor": spread_floors(still, "mean_std")}
    assert nearly_constant(floored, "mean_std") == [1]
    assert offset_and_scale(floored, "mean_std")[1].tolist() == [20.0, 0.9, 25.0]  # 2% of 45 degrees


def test_a_constant_dimension_keeps_scale_one():
    stats = {"mean": [0.5, 1.0], "std": [0.0, 1.0], "floor": [0.01, 0.01]}
    assert offset_and_scale(stats, "mean_std")[1].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="expected floor >= 0 for each of the 2 dimensions"):
        offset_and_scale({**stats, "floor": [0.01]}, "mean_std")
