"""Errors, scores and intervals against values worked out by hand."""

import numpy as np
import pytest

from syvla.evaluation.open_loop.errors import ChunkErrors, Scale, by_episode, compare, moves, spread_of_draws
from syvla.evaluation.open_loop.moments import Moments

# Two moments of episode 4 and one of episode 9; chunks of two steps, two dimensions. The last chunk ends after one step.
RECORDED = np.array([[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]], [[5.0, 50.0], [5.0, 50.0]]], np.float32)
REAL = np.array([[True, True], [True, True], [True, False]])
PREDICTED = np.stack([RECORDED + np.array([1.0, 0.0]), RECORDED + np.array([-3.0, 10.0])]).astype(
    np.float32
)  # two draws
BOTH = np.array([True, True])


def make_moments():
    rows = len(RECORDED)
    return Moments(np.arange(rows), np.array([4, 4, 9]), np.array([0, 2, 0]), RECORDED, REAL, np.zeros((rows, 1)))


def test_errors_are_means_over_draws_of_absolute_differences():
    errors = ChunkErrors.of(make_moments(), PREDICTED)
    assert errors.by_dimension().tolist() == [2.0, 5.0]  # (1 + 3) / 2 and (0 + 10) / 2
    assert errors.by_step().tolist() == [[2.0, 5.0], [2.0, 5.0]]
    assert np.isnan(errors.absolute[2, 1]).all(), "beyond the end of the episode nothing was recorded"


def test_what_stands_beyond_the_end_counts_for_nothing():
    other = PREDICTED.copy()
    other[:, 2, 1] = 1e9
    assert ChunkErrors.of(make_moments(), other).by_dimension().tolist() == [2.0, 5.0]


def test_a_score_is_in_standard_deviations_of_the_dimensions_that_move():
    errors = ChunkErrors.of(make_moments(), PREDICTED)
    both = errors.scores(Scale(np.array([4.0, 50.0]), BOTH), BOTH)
    np.testing.assert_allclose(both[0], (2 / 4 + 5 / 50) / 2)
    assert np.isnan(both[2, 1])
    np.testing.assert_allclose(errors.scores(Scale(np.array([4.0, 1.0]), np.array([True, False])), BOTH)[0], 2 / 4)


def test_a_dimension_that_stands_still_does_not_move():
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(size=50), 1.57 + 1e-7 * rng.normal(size=50)], axis=1)
    assert moves(values, ["rad", "rad"]).tolist() == [True, False]
    with pytest.raises(ValueError, match="constant in every dimension"):
        Scale.of(np.ones((5, 2)))


def test_the_spread_between_draws():
    # Draws are 4 and 10 apart: sample standard deviation d / sqrt(2).
    np.testing.assert_allclose(spread_of_draws(make_moments(), PREDICTED), [[4, 10]] * 2 / np.sqrt(2), rtol=1e-6)
    assert spread_of_draws(make_moments(), PREDICTED[:1]) is None


def test_a_comparison_counts_every_recorded_step_once():
    moments = make_moments()
    ours = ChunkErrors.of(moments, RECORDED + np.float32(1))
    theirs = ChunkErrors.of(moments, RECORDED + np.array([[[2, 2]], [[2, 2]], [[0, 0]]], np.float32))
    one = compare("mean", moments, ours, theirs, BOTH, Scale(np.array([1.0, 1.0]), BOTH))
    assert one.policy_score == pytest.approx(1.0)
    assert one.baseline_score == pytest.approx(4 * 2 / 5)  # four steps of error 2, one of error 0
    assert (one.better_episodes, one.episodes, one.interval, one.outcome) == (1, 2, None, "unclear")


@pytest.mark.parametrize(("shift", "outcome"), [(2.0, "better"), (0.5, "worse"), (1.0, "unclear")])
def test_an_interval_over_episodes_decides(shift, outcome):
    moments = Moments(np.arange(3), np.arange(3), np.zeros(3, np.int64), RECORDED, REAL, np.zeros((3, 1)))
    ours, theirs = (ChunkErrors.of(moments, RECORDED + np.float32(by)) for by in (1.0, shift))
    one = compare("mean", moments, ours, theirs, BOTH, Scale(np.array([1.0, 1.0]), BOTH))
    assert one.outcome == outcome
    np.testing.assert_allclose(one.interval, (1 - shift, 1 - shift), atol=1e-6)  # the same in every episode


def test_a_baseline_that_predicts_only_what_stands_still_is_no_comparison():
    moments = make_moments()
    errors = ChunkErrors.of(moments, PREDICTED)
    scale = Scale(np.array([1.0, 1.0]), np.array([True, False]))
    assert compare("hold", moments, errors, errors, np.array([False, True]), scale) is None


def test_means_by_episode():
    rows = by_episode(make_moments(), {"policy": np.array([[1.0, 3.0], [5.0, 7.0], [9.0, np.nan]])})
    assert rows == [{"episode": 4, "moments": 2, "policy": 4.0}, {"episode": 9, "moments": 1, "policy": 9.0}]
