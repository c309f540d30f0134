"""Dual-system policy: the same answers as the plain policy when the VLM has seen the observation, and fresh state always."""

import threading

import numpy as np
import pytest
import torch

from syvla.serving.policies.dual_system import DualSystemPolicy, join_intentions, split_intention
from syvla.serving.policies.in_process import Intention, SyVLAPolicy

VIEWS = {"center": "head", "left_wrist": "left", "right_wrist": "right"}


@pytest.fixture
def policy(tiny_model, tiny_processor):
    return SyVLAPolicy(tiny_model, tiny_processor, "arm", VIEWS)


def make_observation(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("head", "left", "right")}
    return {"images": images, "state": rng.normal(size=3).astype(np.float32)}


def parts(observations):
    return [one["images"] for one in observations], [one["state"] for one in observations]


def submit(dual, observation, instruction, session):
    return dual.submit(observation["images"], observation["state"], instruction, session)


def predict(dual, observations, tickets, **options):
    return dual.predict(*parts(observations), tickets, **options)


def test_first_answers_are_those_of_the_plain_policy(policy):
    observations, texts = [make_observation(seed) for seed in range(2)], ["lift the cube", "push"]
    plain = policy.predict(observations, texts, seeds=[3, 4])
    dual = DualSystemPolicy(policy)
    tickets = [submit(dual, *pair, session) for *pair, session in zip(observations, texts, "ab", strict=True)]
    answer = predict(dual, observations, tickets, seeds=[3, 4])
    dual.close()
    np.testing.assert_allclose(answer.actions, plain.actions, atol=1e-4)
    assert [age.calls for age in answer.query_ages] == [0, 0]


def test_the_expert_answers_from_the_fresh_state_while_the_vlm_is_behind(policy, monkeypatch):
    intention, free = policy.intention, threading.Event()
    free.set()

    def delayed(*arguments, **options):
        assert free.wait(120)  # a VLM that thinks
        return intention(*arguments, **options)

    monkeypatch.setattr(policy, "intention", delayed)
    dual = DualSystemPolicy(policy)
    first, second, third = (make_observation(seed) for seed in range(3))
    predict(dual, [first], [submit(dual, first, "lift", "a")], seeds=[0])
    free.clear()
    predict(dual, [second], [submit(dual, second, "lift", "a")], seeds=[0])
    answer = predict(dual, [third], [submit(dual, third, "lift", "a")], seeds=[7])
    inputs = policy.inputs(*parts([first]), ["lift"])
    expected = policy.denoise(policy.expert_inputs(*parts([third])), intention(inputs), seeds=[7])
    np.testing.assert_allclose(answer.actions, expected, atol=1e-4)
    assert answer.query_ages[0].calls == 2
    free.set()
    dual.close()


def test_thoughts_come_from_the_background(policy, make_model, tiny_processor):
    thinking = SyVLAPolicy(policy.model, tiny_processor, "arm", VIEWS, think=True, max_new_tokens=4)
    dual = DualSystemPolicy(thinking, max_query_age=0.0)
    observation = make_observation(1)
    answer = predict(dual, [observation], [submit(dual, observation, "lift", "a")], seeds=[0])
    assert answer.thoughts == thinking.predict([observation], ["lift"], seeds=[0]).thoughts
    dual.close()


def test_every_run_of_the_vlm_is_reported_once_and_its_seconds_go_with_its_query_states(policy):
    dual = DualSystemPolicy(policy)
    for calls in (1, 2):
        observations = [make_observation(seed) for seed in range(2)]
        tickets = [submit(dual, one, f"lift {calls}", "ab"[row]) for row, one in enumerate(observations)]
        answer = predict(dual, observations, tickets, seeds=[0, 1])
        runs = dual.take_vlm_seconds()
        assert 1 <= len(runs) <= 2, "the sessions may share one"
        assert all(set(run) == {"queries"} and run["queries"] > 0 for run in runs)
        assert all(seconds in runs for seconds in answer.vlm_seconds)
        assert dual.take_vlm_seconds() == []
    dual.close()


def test_intentions_of_unequal_length_are_padded_and_masked():
    whole = Intention(torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True] * 3]), ["a", "b"])
    short = Intention(torch.randn(1, 2, 4))
    joined = join_intentions([*split_intention(whole), short])
    assert joined.mask.tolist() == [[True, True, False], [True, True, True], [True, True, False]]
    torch.testing.assert_close(joined.query_states[:2], whole.query_states)
    torch.testing.assert_close(joined.query_states[2, :2], short.query_states[0])
    assert joined.thoughts == ["a", "b", ""]
    plain = join_intentions([short, short])
    assert (plain.mask, plain.thoughts) == (None, None)
