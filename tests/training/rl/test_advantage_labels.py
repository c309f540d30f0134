"""Labels of advantages: thresholds per task, ties, and which uses of a sample go without the word."""

import numpy as np
import pytest

from syvla.training.rl.advantage_labels import indicators, label_metrics, left_out, positive_decisions


def test_the_best_share_of_each_task_is_positive():
    """Ten advantages 0 to 9 at quantile 0.7: the threshold is 6.3; the harder task's are judged among themselves."""
    easy, hard = np.arange(10.0), np.arange(10.0) - 100
    advantages = np.stack((easy, hard), axis=1).ravel()
    positive, thresholds = positive_decisions(advantages, ["easy", "hard"] * 10, 0.7)
    assert thresholds == pytest.approx({"easy": 6.3, "hard": -93.7})
    assert np.flatnonzero(positive[0::2]).tolist() == [7, 8, 9]
    assert np.flatnonzero(positive[1::2]).tolist() == [7, 8, 9]
    assert np.flatnonzero(positive_decisions(easy, ["one"] * 10, 0.25)[0]).tolist() == [3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [
        ([0, 0, 0, 1, 1], [3, 4]),  # the threshold is the largest one
        ([0, 0, 0, 0, 1], [4]),  # the threshold is the smallest one
        ([1, 1, 1, 1], []),  # nothing is better than anything
        ([2], []),
        ([-3, -1], [1]),  # failures alone: the better one
    ],
)
def test_ties_and_tasks_without_a_difference(advantages, expected):
    positive, _ = positive_decisions(np.array(advantages, float), ["lift"] * len(advantages), 0.7)
    assert np.flatnonzero(positive).tolist() == expected


def test_metrics_are_shares_by_outcome():
    positive, outcomes = np.array([True, False, True, False]), np.array([1.0, 1.0, 0.0, np.nan])
    metrics = label_metrics(positive, outcomes, {"a": -0.5, "b": 0.25})
    assert metrics == {
        "recap/positive_share": 0.5,
        "recap/threshold_min": -0.5,
        "recap/threshold_max": 0.25,
        "recap/positive_share_success": 0.5,
        "recap/positive_share_failure": 1.0,
    }


def test_what_is_left_out_depends_on_run_update_and_place_alone():
    shape = (200, 2, 8)
    dropped = left_out(5, 3, shape, 0.3, experts=False)
    assert dropped.mean() == pytest.approx(0.3, abs=0.025)  # 3.1 standard deviations of 3200 draws
    np.testing.assert_array_equal(dropped, left_out(5, 3, shape, 0.3, experts=False))
    np.testing.assert_array_equal(dropped[:50], left_out(5, 3, (50, 2, 8), 0.3, experts=False))
    for other in ((6, 3, False), (5, 4, False), (5, 3, True)):
        assert (dropped != left_out(*other[:2], shape, 0.3, experts=other[2])).mean() > 0.3
    assert not left_out(5, 3, shape, 0.0, experts=False).any()


def test_words():
    assert indicators(np.array([True, False, True]), np.array([False, False, True])) == ["positive", "negative", "none"]


@pytest.mark.parametrize(
    ("advantages", "tasks", "quantile", "message"),
    [
        ([1.0], ["a"], 1.0, "advantage_quantile: expected a number between 0 and 1, got 1.0"),
        ([1.0], ["a", "b"], 0.5, "advantages: expected one finite number for each of 2 decisions"),
        ([np.nan], ["a"], 0.5, "advantages: expected one finite number"),
    ],
)
def test_bad_input(advantages, tasks, quantile, message):
    with pytest.raises(ValueError, match=message):
        positive_decisions(np.array(advantages), tasks, quantile)
