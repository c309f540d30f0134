"""The in-process policy: batching, noise seeds, identity, and errors that say what does not fit."""

import numpy as np
import pytest
import torch

from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.environments import make_environment
from syvla.evaluation.policy import load_policy
from syvla.serving.policies.in_process import SyVLAPolicy


@pytest.fixture
def observations():
    """Three observations with instructions of different lengths."""
    environment = make_environment("tabletop", "place")
    resets = [environment.reset(seed=seed) for seed in range(3)]
    return [observation for observation, _ in resets], ["go", resets[1][1]["instruction"], "put it " * 20]


def open_policy(checkpoint, **options) -> SyVLAPolicy:
    return load_policy(checkpoint, make_environment("tabletop", "lift"), device="cpu", **options)


@pytest.mark.parametrize("think", [False, True])
def test_answer_for_one_observation_does_not_depend_on_the_batch(checkpoint, observations, think):
    images, texts = observations
    policy = open_policy(checkpoint, think=think, max_new_tokens=12)
    together = policy.predict(images, texts, seeds=[5, 6, 7])
    assert together.actions.shape == (3, policy.chunk_size, 14)
    assert together.actions.dtype == np.float32
    for row in (2, 0, 1):
        alone = policy.predict(images[row : row + 1], texts[row : row + 1], seeds=[5 + row])
        np.testing.assert_allclose(alone.actions[0], together.actions[row], atol=1e-5)
        assert (alone.thoughts or [None])[0] == (together.thoughts or [None] * 3)[row]
    assert (together.thoughts is not None) == think


def test_the_seed_is_the_only_randomness(checkpoint, observations):
    images, texts = observations
    policy = open_policy(checkpoint)
    first = policy.predict(images[:1], texts[:1], seeds=[1]).actions
    torch.manual_seed(99)
    assert np.array_equal(policy.predict(images[:1], texts[:1], seeds=[1]).actions, first)
    assert not np.allclose(policy.predict(images[:1], texts[:1], seeds=[2]).actions, first)


def test_actions_are_in_physical_units(checkpoint, observations):
    """Statistics of another scale move the actions by exactly that scale."""
    images, texts = observations
    policy = open_policy(checkpoint)
    before = policy.predict(images, texts, seeds=[1, 2, 3]).actions
    entry = policy.processor.embodiments["tabletop"]["statistics"]["action"]
    entry["mean"], entry["std"] = [1.1] * 14, [0.4] * 14
    after = policy.predict(images, texts, seeds=[1, 2, 3]).actions
    np.testing.assert_allclose(after - 1.1, 2 * (before - 0.1), atol=1e-5)


def test_identity_follows_weights_statistics_and_settings(checkpoint, tmp_path):
    policy = open_policy(checkpoint)
    identity = policy.identity()
    policy.model.save_pretrained(tmp_path)
    policy.processor.save_pretrained(tmp_path)
    assert open_policy(str(tmp_path)).identity() == identity, "a copy elsewhere is the same policy"
    assert open_policy(checkpoint, think=True).identity() != identity
    with torch.no_grad():
        next(policy.model.parameters()).view(-1)[0] += 1e-3
    assert policy.identity() != identity


def test_closed_loop_runs_a_checkpoint(checkpoint):
    result = evaluate_closed_loop(
        checkpoint,
        episodes=3,
        environment_options={"max_steps": 10},
        policy_options={"think": True, "max_new_tokens": 4, "device": "cpu"},
        progress=False,
    )
    assert [record.steps for record in result.records] == [10] * 3
    assert result.settings["replan_steps"] == 8
    assert all(record.policy_calls == 2 for record in result.records)


def test_what_does_not_fit_is_named(checkpoint, observations):
    policy = open_policy(checkpoint)
    with pytest.raises(ValueError, match=r"expected one of \['tabletop'\].*got 'cobot'"):
        SyVLAPolicy(policy.model, policy.processor, "cobot", policy.view_cameras)
    images, texts = observations
    policy.view_cameras["center"] = "ceiling"
    with pytest.raises(ValueError, match=r"cameras \['ceiling'\] are missing"):
        policy.predict(images, texts, seeds=[1, 2, 3])
    policy.processor.chunk_size = 9
    with pytest.raises(ValueError, match="do not belong together: chunk_size"):
        SyVLAPolicy(policy.model, policy.processor, "tabletop", policy.view_cameras)
