"""Advantages of recorded rollouts: outcomes, time limits, decisions of which nothing ran. Values are given numbers."""

from types import SimpleNamespace

import numpy as np
import pytest

from syvla.serving.recording.decision import Decision, Rollout
from syvla.serving.recording.episode_facts import EpisodeFacts
from syvla.training.rl.update_preparation import UpdatePreparation

GAMMA, LAM = 0.9, 0.8


class KnownValues(UpdatePreparation):
    """The value of an observation is the number in its state."""

    def __init__(self, **settings):
        self.gamma = GAMMA
        chosen = {"lam": LAM, "advantage_clip": 0.8, "bootstrap_timeouts": True, **settings}
        self.args = SimpleNamespace(**chosen)

    def values(self, item, count):
        return np.array([item(i)["state"][0] for i in range(count)], np.float32)

    def of(self, *rollouts):
        """(advantages, returns, values, metrics)"""
        return self._advantages(rollouts)


def rollout(values, executed, reward, *, timed_out=False, final=0.0):
    """A rollout whose decisions have these values and numbers of executed steps, out of four."""

    def decision(value, steps):
        state = np.array([value], np.float32)
        return Decision({}, state, "reach", "arm", np.zeros((4, 1), np.float32), 0, "v", executed=steps)

    ended = "time limit" if timed_out else "client"
    facts = EpisodeFacts("one", "robot", "arm", outcome=reward, ended=ended, policy_versions=("v",))
    return Rollout(facts, [decision(*pair) for pair in zip(values, executed, strict=True)], decision(final, 0))


def brute_force(steps, reward, values, following):
    """Sum over later decisions of the temporal difference, discounted by gamma per control step and lambda per decision."""
    after, last = [*values[1:], following], len(values) - 1
    errors = [GAMMA ** steps[i] * after[i] - values[i] for i in range(len(values))]
    errors[last] += GAMMA ** (steps[last] - 1) * reward
    sums = [
        sum(GAMMA ** sum(steps[i:j]) * LAM ** (j - i) * errors[j] for j in range(i, len(errors)))
        for i in range(len(errors))
    ]
    return np.clip(sums, -0.8, 0.8), np.array(sums) + np.array(values)


@pytest.mark.parametrize(
    ("reward", "timed_out", "bootstrap", "following"),
    [(1, False, True, 0.0), (0, False, True, 0.0), (0, True, True, 0.7), (0, True, False, 0.0), (1, True, True, 0.0)],
    ids=["success", "failure", "time-out", "time-out as failure", "success at the limit"],
)
def test_a_time_out_is_valued_and_all_else_ends(reward, timed_out, bootstrap, following):
    values = [0.5, 0.6, 0.4]
    made = rollout(values, [4, 4, 2], reward, timed_out=timed_out, final=0.7)
    advantages, returns, kept, _ = KnownValues(bootstrap_timeouts=bootstrap).of(made)
    expected = brute_force([4, 4, 2], reward, values, following)
    np.testing.assert_allclose(advantages, expected[0], atol=1e-6)
    np.testing.assert_allclose(returns, expected[1], atol=1e-6)
    np.testing.assert_allclose(kept, values, atol=1e-6)


@pytest.mark.parametrize("reward", [0, 1])
def test_the_reward_belongs_to_the_last_decision_of_which_something_ran(reward):
    """The robot was stopped right after it had got a further chunk."""
    plain = KnownValues().of(rollout([0.5, 0.6], [4, 4], reward))
    further = KnownValues().of(rollout([0.5, 0.6, 0.2], [4, 4, 0], reward))
    for a, b in zip(plain[:3], further[:3], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_decision_in_the_middle_of_which_nothing_ran_has_no_advantage_of_its_own():
    values = [0.5, 0.6, 0.2]
    advantages, _, kept, _ = KnownValues().of(rollout(values, [4, 0, 3], 1))
    np.testing.assert_allclose(advantages, brute_force([4, 0, 3], 1, values, 0.0)[0][[0, 2]], atol=1e-6)
    np.testing.assert_allclose(kept, [0.5, 0.2], atol=1e-6)


def test_rollouts_stay_apart_and_one_of_which_nothing_ran_leaves_nothing():
    one, none, other = rollout([0.3], [1], 1), rollout([0.9], [0], 0), rollout([0.2, 0.1], [4, 4], 0)
    advantages, returns, _, metrics = KnownValues().of(one, none, other)
    expected = [brute_force([1], 1, [0.3], 0.0), brute_force([4, 4], 0, [0.2, 0.1], 0.0)]
    np.testing.assert_allclose(advantages, np.concatenate([part[0] for part in expected]), atol=1e-6)
    np.testing.assert_allclose(returns, np.concatenate([part[1] for part in expected]), atol=1e-6)
    assert metrics["objective/success_rate"] == pytest.approx(1 / 3)
