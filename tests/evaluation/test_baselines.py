"""Random actions cover the action space and follow the seed alone."""

import numpy as np
from gymnasium import spaces

from syvla.evaluation.baselines import RandomBaseline


class Limits:
    """An environment of which only the action space is looked at."""

    action_space = spaces.Box(
        np.array([-2, 0, -np.inf, 1], np.float32), np.array([2, 0.5, np.inf, np.inf], np.float32), dtype=np.float32
    )


def test_random_actions_are_uniform_between_limits_and_normal_without():
    draws = np.array([RandomBaseline().act(Limits(), {}, seed)[0] for seed in range(4000)])
    assert draws.dtype == np.float32
    assert Limits.action_space.contains(draws[0])
    for column, (low, high) in enumerate([(-2, 2), (0, 0.5)]):
        assert low <= draws[:, column].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < draws[:, column].max() <= high
        quarters = np.histogram(draws[:, column], 4, (low, high))[0]
        assert (abs(quarters - 1000) < 120).all(), "four standard deviations"
    assert abs(draws[:, 2].mean()) < 0.07
    assert abs(draws[:, 2].std() - 1) < 0.05
    assert draws[:, 3].min() >= 1, "a limit on one side is kept"


def test_random_actions_follow_the_seed():
    first, again, other = (RandomBaseline().act(Limits(), {}, seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert (first != other)[:3].all()
