"""Advantages against brute force, and what must not happen to them."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from syvla.training.rl.advantages import (
    clip_advantages,
    decision_rewards,
    default_discount,
    explained_variance,
    generalized_advantages,
    group_relative_advantages,
    monte_carlo_returns,
)

rates = st.floats(0, 1)
episodes = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*(arrays(np.float64, n, elements=st.floats(-2, 2)) for _ in range(2)))
)


def brute_force(rewards, values, gamma, lam, last):
    """The definition: sum over l of (gamma * lambda)^l times the temporal difference l steps ahead."""
    following = [*values[1:], last]
    result = []
    for start in range(len(rewards)):
        total = 0.0
        for ahead, step in enumerate(range(start, len(rewards))):
            error = rewards[step] + gamma * following[step] - values[step]
            total += (gamma * lam) ** ahead * error
        result.append(total)
    return np.array(result)


@given(episodes, rates, rates, st.one_of(st.none(), st.floats(-2, 2)))
def test_generalized_advantages_equal_brute_force(episode, gamma, lam, bootstrap):
    rewards, values = episode
    advantages, returns = generalized_advantages(rewards, values, gamma=gamma, lam=lam, bootstrap_value=bootstrap)
    expected = brute_force(rewards, values, gamma, lam, 0.0 if bootstrap is None else bootstrap)
    np.testing.assert_allclose(advantages, expected, atol=1e-12)
    np.testing.assert_allclose(returns, expected + values, atol=1e-12)


@given(episodes, rates)
def test_lambda_one_is_monte_carlo_and_lambda_zero_one_step(episode, gamma):
    rewards, values = episode
    n = len(rewards)
    _, returns = generalized_advantages(rewards, values, gamma=gamma, lam=1.0)
    expected = [sum(gamma**k * rewards[start + k] for k in range(n - start)) for start in range(n)]
    np.testing.assert_allclose(returns, expected, atol=1e-12)
    _, returns = generalized_advantages(rewards, values, gamma=gamma, lam=0.0)
    np.testing.assert_allclose(returns, rewards + gamma * np.append(values[1:], 0.0), atol=1e-12)


def test_a_time_out_is_no_failure():
    """Cut off while the value model still expects success, an episode is not punished as a failure is."""
    rewards, values = decision_rewards(np.full(3, 10), 0.0, 1.0)[0], np.full(3, 0.9)
    failed, _ = generalized_advantages(rewards, values, gamma=1.0, lam=0.95)
    timed_out, _ = generalized_advantages(rewards, values, gamma=1.0, lam=0.95, bootstrap_value=0.9)
    assert failed[-1] == pytest.approx(-0.9)
    np.testing.assert_allclose(timed_out, 0.0, atol=1e-12)


def test_clipping_keeps_sign_and_does_not_whiten():
    clipped, share = clip_advantages(np.array([-3.0, -0.8, -0.1, 0.1, 2.0]))
    np.testing.assert_array_equal(clipped, [-0.8, -0.8, -0.1, 0.1, 0.8])
    assert share == pytest.approx(0.4)
    all_bad, _ = clip_advantages(np.full(5, -0.5))
    np.testing.assert_array_equal(all_bad, -0.5)
    assert clip_advantages(np.zeros(0))[1] == 0.0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.floats(0.9, 1), rates)
def test_a_perfect_success_has_no_advantage_however_often_the_robot_asks(steps, gamma, lam):
    """The value model was warmed up frame by frame; replanning every step, every 10 or at random changes nothing."""
    returns = monte_carlo_returns(sum(steps), gamma, 1.0)
    values = returns[np.cumsum([0, *steps[:-1]])]
    rewards, discounts = decision_rewards(np.array(steps), 1.0, gamma)
    advantages, found = generalized_advantages(rewards, values, gamma=discounts, lam=lam)
    np.testing.assert_allclose(advantages, 0.0, atol=1e-12)
    np.testing.assert_allclose(found, values, atol=1e-12)


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 9), st.floats(0.5, 1), rates, st.data())
def test_advantages_equal_a_sum_over_control_steps(steps, last, gamma, lam, data):
    """Each control step by itself: a reward at the last one, a value where a decision was made."""
    steps = [*steps, last]
    values = np.array(data.draw(st.lists(st.floats(-2, 2), min_size=len(steps), max_size=len(steps))))
    rewards, discounts = decision_rewards(np.array(steps), 1.0, gamma)
    advantages, _ = generalized_advantages(rewards, values, gamma=discounts, lam=lam)
    for start in range(len(steps)):
        total, weight = 0.0, 1.0
        for number in range(start, len(steps)):
            gained, discount = 0.0, 1.0
            for step in range(steps[number]):
                done = number == len(steps) - 1 and step == steps[number] - 1
                gained += discount * float(done)
                discount *= gamma
            following = values[number + 1] if number + 1 < len(steps) else 0.0
            total += weight * (gained + discount * following - values[number])
            weight *= discount * lam
        assert advantages[start] == pytest.approx(total, abs=1e-9)


@given(st.integers(1, 60), st.floats(0.5, 1))
def test_monte_carlo_returns_count_control_steps(frames, gamma):
    returns = monte_carlo_returns(frames, gamma, 1.0)
    for frame in range(frames):
        expected = 1.0
        for _ in range(frames - 1 - frame):
            expected *= gamma
        assert returns[frame] == pytest.approx(expected)
    assert returns[-1] == 1.0
    assert not monte_carlo_returns(frames, gamma, 0.0).any()


def test_the_default_discount_is_a_hundredth_per_chunk():
    assert default_discount(50) ** 50 == pytest.approx(0.99)


def test_explained_variance_of_perfect_constant_and_misleading_values():
    returns = np.array([0.1, 0.5, 0.9])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(returns + 3, returns) == pytest.approx(1.0), "a constant offset is not variance"
    assert explained_variance(np.zeros(3), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert math.isnan(explained_variance(returns, np.ones(3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generalized_advantages(np.zeros(2), np.zeros(3), gamma=1, lam=1), "values: expected one per reward"),
        (lambda: generalized_advantages(np.zeros(2), np.zeros(2), gamma=1.1, lam=1), "gamma: expected a number"),
        (lambda: generalized_advantages(np.zeros(1), np.full(1, np.nan), gamma=1, lam=1), "expected finite numbers"),
        (lambda: decision_rewards(np.zeros(0), 1.0, 1.0), "expected at least 1 decision"),
        (lambda: decision_rewards(np.array([3, 0]), 1.0, 1.0), "a last one of which something ran"),
        (lambda: clip_advantages(np.zeros(1), 0.0), "advantage_clip: expected a positive number"),
        (lambda: monte_carlo_returns(0, 1.0, 1.0), "expected at least 1"),
        (lambda: explained_variance(np.zeros(2), np.zeros(3)), "values: expected one per return"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_group_relative_advantages_by_hand():
    """One success among four: mean 1/4, sample variance (9 + 3 * 1) / 16 / 3 = 1/4. The other task's rollouts are alike."""
    rewards, tasks = [1, 0, 0, 0, 1, 1, 0.5], ["lift"] * 4 + ["place"] * 2 + ["alone"]
    found = group_relative_advantages(np.array(rewards), tasks)
    np.testing.assert_allclose(found, [1.5, -0.5, -0.5, -0.5, 0, 0, 0], atol=1e-12)


@given(st.lists(st.tuples(st.integers(0, 10), st.sampled_from("abc")), min_size=1, max_size=20))
def test_group_relative_advantages_by_the_sample_standard_deviation(rollouts):
    """As veRL's `compute_grpo_outcome_advantage`, (score - mean) / torch.std of the group; 0 where all are alike."""
    rewards, tasks = np.array([pair[0] / 10 for pair in rollouts]), [pair[1] for pair in rollouts]
    found = group_relative_advantages(rewards, tasks)
    for number, (tenths, task) in enumerate(rollouts):
        group = [other / 10 for other, name in rollouts if name == task]
        alike = len(set(group)) == 1
        expected = 0.0 if alike else (tenths / 10 - statistics.mean(group)) / statistics.stdev(group)
        assert found[number] == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("rewards", [np.array([1.0, math.nan]), np.array([1.0])])
def test_a_group_needs_a_finite_reward_for_each_rollout(rewards):
    with pytest.raises(ValueError, match="rewards: expected one finite number for each of 2 rollouts"):
        group_relative_advantages(rewards, ["a", "a"])
