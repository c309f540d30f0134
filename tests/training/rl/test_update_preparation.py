"""Advantages of recorded rollouts: outcomes, time limits, decisions of which nothing ran. Values are given numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from syvla.modeling_syvla.expert_inputs import action_target
from syvla.serving.recording.decision import Correction, Decision, Rollout
from syvla.serving.recording.episode_facts import EpisodeFacts
from syvla.training.rl.credit import outcome_metrics
from syvla.training.rl.update_data import join_corrections
from syvla.training.rl.update_preparation import UpdatePreparation
from syvla.training.rl.value_calibration import held_out_rollouts, value_targets

GAMMA, LAM = 0.9, 0.8


class KnownValues(UpdatePreparation):
    """The value of an observation is the number in its state."""

    def __init__(self, **settings):
        self.gamma = GAMMA
        chosen = {
            "objective": "ppo",
            "lam": LAM,
            "advantage_clip": 0.8,
            "bootstrap_timeouts": True,
            "takeover_failed_decisions": 2,
            "rollout_advantages": "gae",
            "min_advantage_spread": 0.01,
            **settings,
        }
        self.args = SimpleNamespace(**chosen)

    def values(self, item, count):
        return np.array([item(i)["state"][0] for i in range(count)], np.float32)

    def of(self, *rollouts):
        """(advantages, returns, values, metrics)"""
        *arrays, metrics = self._advantages(rollouts)
        return (*arrays, {**metrics, **outcome_metrics(rollouts)})


def rollout(values, executed, reward, *, timed_out=False, final=0.0, takeovers=()):
    """A rollout whose decisions have these values and numbers of executed steps, out of four."""

    def decision(value, steps, taken_over=False):
        state = np.array([value], np.float32)
        chunk = np.zeros((4, 1), np.float32)
        return Decision({}, state, "reach", "arm", chunk, 0, "v", executed=steps, taken_over=taken_over)

    human = Correction({}, np.zeros(1, np.float32), "reach", "arm", np.zeros((1, 1), np.float32), False)

    ended = "time limit" if timed_out else "client"
    facts = EpisodeFacts("one", "robot", "arm", outcome=reward, ended=ended, policy_versions=("v",))
    made = [decision(*pair, number in takeovers) for number, pair in enumerate(zip(values, executed, strict=True))]
    return Rollout(facts, made, decision(final, 0), (human,) * len(takeovers))


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


@pytest.mark.parametrize("failed", [1, 2, 9])
@pytest.mark.parametrize("reward", [0, 1])
def test_decisions_before_a_takeover_failed_and_those_before_them_are_credited_up_to_there(failed, reward):
    """Four decisions, a person, two more to the end. By hand: the first ones are cut off at the first failed one, whose value
    stands for the rest; the failed ones end with 0; the last two end with the person's label.
    """
    values, steps = [0.5, 0.6, 0.4, 0.3, 0.7, 0.2], [4, 4, 3, 2, 4, 1]
    made = rollout(values, steps, reward, takeovers=(3,))
    advantages, returns, kept, metrics = KnownValues(takeover_failed_decisions=failed).of(made)
    cut = max(0, 4 - failed)
    parts = [brute_force(steps[cut:4], 0, values[cut:4], 0.0), brute_force(steps[4:], reward, values[4:], 0.0)]
    if cut:
        parts.insert(0, brute_force(steps[:cut], 0, values[:cut], values[cut]))
    np.testing.assert_allclose(advantages, np.concatenate([part[0] for part in parts]), atol=1e-6)
    np.testing.assert_allclose(returns, np.concatenate([part[1] for part in parts]), atol=1e-6)
    np.testing.assert_allclose(kept, values, atol=1e-6)
    assert metrics["objective/success_rate"] == 0, "the policy alone did not succeed"


def test_a_person_who_finishes_brings_the_policy_no_reward():
    """The label is of what the person did; a chunk of which nothing ran before the takeover gets no advantage."""
    won = KnownValues().of(rollout([0.5, 0.6, 0.9], [4, 4, 0], 1, takeovers=(2,)))
    lost = KnownValues().of(rollout([0.5, 0.6, 0.9], [4, 4, 0], 0, takeovers=(2,)))
    expected = brute_force([4, 4], 0, [0.5, 0.6], 0.0)
    for found in (won, lost):
        np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


def test_the_value_model_learns_nothing_from_what_nobody_knows_the_end_of():
    made = rollout([0.5, 0.6, 0.4, 0.3], [4, 4, 3, 2], 1, takeovers=(2,))
    targets = value_targets([made], GAMMA, leave_out_timeouts=True, failed_decisions=1)
    assert [float(d.state[0]) for d in targets.decisions] == pytest.approx([0.4, 0.3])
    np.testing.assert_allclose(targets.returns, [0.0, GAMMA], rtol=1e-6)
    assert (targets.owners.tolist(), targets.outcomes) == ([0, 1], [0.0, 1.0])


def test_corrections_take_the_place_of_a_share_of_the_expert_samples():
    rows, plan = np.array([3, 5, 8]), np.random.default_rng(0).integers(0, 3, (50, 2, 10))
    same = join_corrections(rows, plan, np.zeros(0, np.int64), 0.5, np.random.default_rng(1))
    assert same[0] is rows
    assert same[1] is plan
    joined, numbers = join_corrections(rows, plan, np.arange(100, 104), 0.3, np.random.default_rng(1))
    planned = joined[numbers]
    human = planned >= 100
    assert human.mean() == pytest.approx(0.3, abs=0.06)
    np.testing.assert_array_equal(planned[~human], rows[plan][~human])
    assert set(planned[human]) == {100, 101, 102, 103}


def test_a_graded_reward_is_what_the_last_decision_brings():
    values = [0.5, 0.6, 0.4]
    graded, won = rollout(values, [4, 4, 2], 0.3), rollout(values, [4, 4, 2], 0.9)
    advantages, returns, _, metrics = KnownValues().of(graded, won)
    expected = [brute_force([4, 4, 2], reward, values, 0.0) for reward in (0.3, 0.9)]
    np.testing.assert_allclose(advantages, np.concatenate([part[0] for part in expected]), atol=1e-6)
    np.testing.assert_allclose(returns, np.concatenate([part[1] for part in expected]), atol=1e-6)
    assert metrics["objective/success_rate"] == 0.5
    assert metrics["objective/scores"] == pytest.approx(0.6)
    grades = [0.3, 0.9, 0.2, 0.7]
    held = held_out_rollouts(grades, 0.5, np.random.default_rng(0))
    assert sorted(grades[number] >= 0.5 for number in held) == [False, True], "one of either kind"


@pytest.mark.parametrize("chunk_end", ["noise", "hold", "hold_untrained"])
def test_expert_chunks_end_as_in_imitation_and_sampled_ones_as_they_were_sampled(
    chunk_end, make_item, tiny_processor, make_model
):
    """After the end of an expert's episode stands what fine-tuning puts there; what the policy sampled stays."""
    model = make_model(chunk_end=chunk_end)
    preparation = UpdatePreparation.__new__(UpdatePreparation)
    preparation.args, preparation.processor = SimpleNamespace(ratio_method="fpo"), tiny_processor
    preparation.model = SimpleNamespace(base_policy=model)
    ends = np.arange(8) >= 5
    items = [make_item(seed, action_is_pad=ends) for seed in (1, 2, 3)]
    items[2]["ends_episode"] = False  # a person's correction, after which the policy went on
    batch = preparation.policy_batch(items, [True, False, True])
    given = tiny_processor.collate(items)
    target = action_target(model.config, given["embodiment_ids"], given["actions"], given["action_mask"])
    assert torch.equal(batch["actions"][0], target.actions[0])
    assert torch.equal(batch["action_mask"][0], target.mask[0])
    for row in (1, 2):
        assert torch.equal(batch["actions"][row], given["actions"][row])
        assert torch.equal(batch["action_mask"][row], given["action_mask"][row])
    end = batch["actions"][0, 5:]
    assert torch.equal(end, (0 if chunk_end == "noise" else 1) * batch["actions"][0, 4:5].expand_as(end))
    assert batch["action_mask"][0].any(-1).tolist() == [True] * 5 + [chunk_end == "hold"] * 3


def test_group_advantages_are_those_of_whole_rollouts_and_ask_no_value_model():
    """Rewards 1, 0, 0 and, where a person finished, 0 in place of 1: mean 1/4, standard deviation 1/2, one for all steps."""
    made = [
        rollout([0.5, 0.6], [4, 2], 1),
        rollout([0.5, 0.6, 0.1], [4, 0, 4], 0),
        rollout([0.5], [4], 0, timed_out=True, final=0.9),
        rollout([0.5, 0.6], [4, 4], 1, takeovers=(1,)),
    ]
    preparation = KnownValues(rollout_advantages="group", advantage_clip=1.2)
    preparation.values = None
    judged = preparation._judge(made, (), 7)
    np.testing.assert_allclose(judged.advantages, [1.2, 1.2, -0.5, -0.5, -0.5, -0.5, -0.5], atol=1e-6)
    assert judged.metrics["objective/frac_adv_clipped"] == pytest.approx(2 / 7)
    assert judged.metrics["objective/success_rate"] == pytest.approx(1 / 4)
    assert judged.metrics["objective/advantage_success_mean"] == pytest.approx(1.2)
    assert not judged.no_information
    alike = preparation._judge([rollout([0.5], [4], 0)] * 3, (), 3)
    np.testing.assert_array_equal(alike.advantages, 0)
    assert "the advantages of all decisions are alike" in alike.no_information
