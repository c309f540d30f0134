"""Value-only steps on rollouts: a value model that expects success everywhere learns what failure looks like."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from syvla.modeling_syvla import SyVLAValueConfig, SyVLAValueModel
from syvla.serving.recording.decision import Decision, Rollout
from syvla.serving.recording.episode_facts import EpisodeFacts
from syvla.training.rl.advantages import decision_rewards, generalized_advantages
from syvla.training.rl.value_calibration import (
    advantage_metrics,
    calibrate_values,
    fit_quality,
    good_enough,
    held_out_rollouts,
    information_problem,
    value_targets,
)

GAMMA = 0.9


def rollout(outcome, executed=(4, 4), timed_out=False):
    """All begin alike, state 0; from the second decision on the state, 1 or -1, shows how it will end."""
    states = [np.full(3, (2 * outcome - 1) * (number > 0), np.float32) for number in range(len(executed))]
    decisions = [
        Decision({}, state, "reach", "arm", np.zeros((4, 1), np.float32), 0, "v", executed=n)
        for state, n in zip(states, executed, strict=True)
    ]
    facts = EpisodeFacts("one", "robot", "arm", outcome=outcome, ended="time limit" if timed_out else "client")
    return Rollout(facts, decisions, decisions[-1])


def test_targets_are_discounted_outcomes_by_control_steps():
    found = value_targets([rollout(1, (4, 0, 3, 2, 0)), rollout(0, (1,))], GAMMA, leave_out_timeouts=True)
    np.testing.assert_allclose(found.returns, [GAMMA**8, GAMMA**4, GAMMA**1, 0.0], rtol=1e-6)
    assert found.owners.tolist() == [0, 0, 0, 1]
    assert found.outcomes == [1, 0]


def test_a_time_out_says_nothing_where_it_is_valued_by_its_last_state():
    rollouts = [rollout(0, timed_out=True), rollout(1, timed_out=True)]
    assert value_targets(rollouts, GAMMA, leave_out_timeouts=True).outcomes == [1]
    assert value_targets(rollouts, GAMMA, leave_out_timeouts=False).outcomes == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_both_outcomes_are_held_out_and_both_are_learned_from(seed):
    outcomes = [1] * 6 + [0] * 2 + [1]
    chosen = held_out_rollouts(outcomes, 0.25, np.random.default_rng(seed))
    held = [outcomes[number] for number in chosen]
    assert (held.count(1), held.count(0)) == (2, 1)
    assert held_out_rollouts([1, 0], 0.5, np.random.default_rng(seed)) == set(), "one of each is too few"


def test_quality_counts_an_offset_and_knows_returns_that_are_alike():
    returns = np.array([0.0, 0.0, 1.0, 1.0])
    assert fit_quality(returns, returns) == {"explained": 1.0, "error": 0.0, "calibration_error": 0.0}
    optimistic = fit_quality(np.full(4, 0.98), returns)
    assert optimistic["explained"] == pytest.approx(1 - (0.98**2 + 0.02**2) / 2 / 0.25)
    assert optimistic["calibration_error"] == pytest.approx(0.48), "0.98 said, 0.5 came"
    failures = fit_quality(np.full(4, 0.98), np.zeros(4))
    assert np.isnan(failures["explained"])
    assert not good_enough(failures, 0.3), "all failed, and success was expected"
    assert good_enough(fit_quality(np.full(4, 0.05), np.zeros(4)), 0.3)


def optimistic_model():
    """Says about 0.98 whatever it sees, as after a warm-up on successes alone."""
    torch.manual_seed(0)
    config = SyVLAValueConfig.tiny(embodiments={"arm": {"state_dim": 3, "action_dim": 1}})
    model = SyVLAValueModel(config)
    last = [module for module in model.value_head.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(0.01)
        last.bias.fill_(0.98)
    return model, config


def inputs_of(config):
    size = config.image_size

    def inputs(decisions):
        return {
            "expert_pixel_values": torch.zeros(len(decisions), len(config.views), 3, size, size),
            "state": torch.tensor(np.stack([decision.state for decision in decisions])),
            "embodiment_ids": torch.zeros(len(decisions), dtype=torch.long),
        }

    return inputs


def mean_advantages(model, inputs, rollouts):
    """Of successes and of failures, by the shipped estimator."""
    found = {0: [], 1: []}
    for one in rollouts:
        with torch.no_grad():
            values = model(**inputs(one.decisions)).value.numpy()
        rewards, discounts = decision_rewards(np.array([d.executed for d in one.decisions]), one.facts.outcome, 1.0)
        advantages, _ = generalized_advantages(rewards, values, gamma=discounts, lam=0.95)
        found[one.facts.outcome].extend(advantages)
    return np.mean(found[1]), np.mean(found[0])


def test_value_only_steps_give_successes_an_advantage_again():
    rollouts = [rollout(number % 2) for number in range(8)]
    model, config = optimistic_model()
    inputs = inputs_of(config)
    before = mean_advantages(model, inputs, rollouts)
    assert before[0] < 0.05
    assert before[1] < -0.9

    def calibrate(max_steps):
        return calibrate_values(
            model,
            inputs,
            value_targets(rollouts, 1.0, leave_out_timeouts=True),
            threshold=0.3,
            max_steps=max_steps,
            heldout_share=0.25,
            batch_size=8,
            learning_rate=3e-3,
            precision=nullcontext,
            seed=0,
        )

    metrics = calibrate(300)
    assert metrics["val/explained_heldout_before"] < 0
    assert metrics["val/explained_heldout"] >= 0.3
    assert 0 < metrics["val/value_only_steps"] < 300, "they end as soon as it is explained"
    won, lost = mean_advantages(model, inputs, rollouts)
    assert won > before[0] + 0.1
    assert won > 0.1 > -0.1 > lost > before[1]
    again = calibrate(300)
    assert again["val/value_only_steps"] == 0, "nothing to do"
    assert again["val/explained_heldout"] == pytest.approx(metrics["val/explained_heldout"]), (
        "the best weights were kept"
    )


def test_the_histogram_and_the_means_by_outcome():
    advantages, outcomes = np.array([-0.8, -0.2, 0.0, 0.1, 0.5]), np.array([0, 0, 1, 1, 1])
    metrics = advantage_metrics(advantages, outcomes)
    shares = [value for name, value in metrics.items() if "share" in name]
    assert shares == pytest.approx([0.2] * 5)
    assert metrics["objective/advantage_success_mean"] == pytest.approx(0.2)
    assert metrics["objective/advantage_failure_mean"] == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("won", "lost", "problem"),
    [
        ([-0.003, 0.015, -0.02], [-0.8, -0.8], "nothing is reinforced: advantages are -0.0027 on average in successes"),
        ([0.1, 0.1], [0.1, 0.1], "are alike"),
        ([], [-0.3, -0.3], "are alike"),
        ([-0.1, 0.1], [0.2, 0.4], "no higher advantages than those of failures"),
        ([0.3, 0.2], [-0.4, -0.2], ""),
        ([], [-0.3, 0.1], ""),
    ],
)
def test_advantages_that_say_nothing_are_named(won, lost, problem):
    advantages, outcomes = np.array([*won, *lost]), np.array([1] * len(won) + [0] * len(lost))
    found = information_problem(advantages, outcomes, 0.01)
    assert (problem in found) if problem else (found == "")
    assert information_problem(advantages, outcomes, 0.0) == ""
