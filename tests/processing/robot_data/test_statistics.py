"""Running statistics: exact over chunks, and errors that name the value."""

import numpy as np
import pytest

from syvla.processing.robot_data.statistics import RunningStatistics


def test_statistics_equal_those_of_all_values():
    generator = np.random.default_rng(0)
    values = (generator.normal(size=(5000, 4)) * [1.0, 50.0, 1e-3, 0.0] + [0.0, -3.0, 0.5, 0.7]).astype(np.float32)
    running = RunningStatistics(4)
    for chunk in np.array_split(values, 7):
        running.update(chunk)
    stats = running.result()
    exact = values.astype(np.float64)
    np.testing.assert_allclose(stats["mean"], exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats["std"], exact.std(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(stats["min"], exact.min(0))
    np.testing.assert_array_equal(stats["max"], exact.max(0))
    for key, level in {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}.items():
        np.testing.assert_array_equal(stats[key], np.quantile(exact, level, axis=0))
    assert stats["count"] == [5000]


def test_running_statistics_reject_bad_values():
    running = RunningStatistics(2)
    with pytest.raises(ValueError, match="no values"):
        running.result()
    running.update(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="dimension 1 of vector 4"):
        running.update(np.array([[0, 0], [0, np.inf]]))
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        running.update(np.zeros((3, 3)))
