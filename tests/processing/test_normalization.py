"""Normalization: inverse, the ranges each mode promises, constant dimensions, exact statistics, errors."""

import numpy as np
import pytest
import torch

from syvla.processing.normalization import MODES, RunningStatistics, normalize, unnormalize


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


def test_statistics_equal_those_of_all_values(values, stats):
    exact = values.astype(np.float64)
    np.testing.assert_allclose(stats["mean"], exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats["std"], exact.std(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(stats["min"], exact.min(0))
    np.testing.assert_array_equal(stats["max"], exact.max(0))
    for key, level in {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}.items():
        np.testing.assert_array_equal(stats[key], np.quantile(exact, level, axis=0))
    assert stats["count"] == [5000]


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
    gripper[:3] = 85.0  # millimetres, open in 0.3% of frames
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


def test_running_statistics_reject_bad_values():
    running = RunningStatistics(2)
    with pytest.raises(ValueError, match="no values"):
        running.result()
    running.update(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="dimension 1 of vector 4"):
        running.update(np.array([[0, 0], [0, np.inf]]))
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        running.update(np.zeros((3, 3)))
