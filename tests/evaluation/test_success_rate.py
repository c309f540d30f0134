"""Wilson intervals: against the defining equation, published values, and simulated coverage."""

import math
import random

import pytest

from syvla.evaluation.success_rate import SuccessRate, wilson_interval

Z95 = 1.959963984540054


@pytest.mark.parametrize(("successes", "episodes"), [(1, 10), (28, 40), (39, 40), (500, 1000)])
def test_bounds_solve_the_score_equation(successes, episodes):
    """The bounds are the p with |p_hat - p| = z sqrt(p (1 - p) / n): an independent characterisation."""
    for bound in wilson_interval(successes, episodes):
        assert abs(successes / episodes - bound) == pytest.approx(Z95 * math.sqrt(bound * (1 - bound) / episodes))


def test_published_values():
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (Wilson without continuity correction)."""
    for (successes, episodes), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson_interval(successes, episodes) == pytest.approx(expected, abs=5e-5)


def test_extremes_reach_zero_and_one_and_mirror_each_other():
    low, high = wilson_interval(0, 40)
    assert low == 0.0
    assert 0 < high < 0.1
    assert wilson_interval(40, 40) == pytest.approx((1 - high, 1.0))
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_coverage_is_about_nominal():
    """Of 2000 simulated evaluations of 40 episodes about 95% must cover the true rate, near the edge too."""
    generator = random.Random(0)
    for rate in (0.5, 0.9):
        covered = 0
        for _ in range(2000):
            low, high = wilson_interval(sum(generator.random() < rate for _ in range(40)), 40)
            covered += low <= rate <= high
        assert 0.92 < covered / 2000 < 0.98


def test_more_confidence_is_a_wider_interval():
    narrow, wide = wilson_interval(7, 10, 0.8), wilson_interval(7, 10, 0.99)
    assert wide[0] < narrow[0] < 0.7 < narrow[1] < wide[1]


@pytest.mark.parametrize("arguments", [(-1, 4), (5, 4), (1, 4, 0.0), (1, 4, 95)])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"expected"):
        wilson_interval(*arguments)


def test_success_rate_counts_prints_and_serializes():
    rate = SuccessRate.of([True] * 28 + [False] * 12)
    assert str(rate) == "28/40 = 70.0% [54.6, 81.9]"
    assert rate.to_dict()["interval"] == list(wilson_interval(28, 40))
    assert SuccessRate.of([]).to_dict()["success_rate"] is None
