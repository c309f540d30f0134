"""A chunk continues the previous one: frozen steps are kept in physical units, the rest stays the policy's own."""

import numpy as np
import pytest
import torch

from syvla.serving.contract.requests import PreviousChunk
from syvla.serving.contract.rollout_sampler import RolloutSampler
from syvla.serving.policies.backend import SyVLABackend
from syvla.serving.policies.in_process import SyVLAPolicy


@pytest.fixture
def policy(tiny_model, tiny_processor):
    views = {"center": "head", "left_wrist": "left", "right_wrist": "right"}
    return SyVLAPolicy(tiny_model, tiny_processor, "arm", views)


def make_observation(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("head", "left", "right")}
    return {"images": images, "state": rng.normal(size=3).astype(np.float32)}


def test_frozen_steps_are_the_previous_chunk_and_other_samples_are_untouched(policy):
    observations = [make_observation(seed) for seed in range(3)]
    texts, seeds = ["lift"] * 3, [1, 2, 3]
    free = policy.predict(observations, texts, seeds=seeds).actions
    rest = np.random.default_rng(9).normal(size=(5, 2)).astype(np.float32)
    previous = [None, PreviousChunk(rest, 3), PreviousChunk(np.tile(rest, (10, 1)), 0)]
    stitched = policy.predict(observations, texts, seeds=seeds, previous=previous).actions
    np.testing.assert_allclose(stitched[0], free[0], atol=1e-5)
    np.testing.assert_allclose(stitched[1, :3], rest[:3], atol=1e-5)
    for step in (3, 4):  # drawn towards the previous chunk, from wherever the flow would have gone
        assert np.abs(stitched[1, step] - rest[step]).sum() < np.abs(free[1, step] - rest[step]).sum()
    assert np.abs(stitched[2] - free[2]).max() > 1e-3


def test_a_chunk_continued_by_itself_stays_what_it_was(policy):
    observation = [make_observation(0)]
    free = policy.predict(observation, ["lift"], seeds=[4]).actions
    again = policy.predict(observation, ["lift"], seeds=[5], previous=[PreviousChunk(free[0], len(free[0]))]).actions
    np.testing.assert_allclose(again, free, atol=1e-5)


@pytest.mark.parametrize(
    ("actions", "delay", "message"),
    [
        (np.zeros((4, 2), np.float32), 5, "delay_steps: expected 0 to 4"),
        (np.zeros((0, 2), np.float32), 0, "prev_chunk: expected shape"),
        (np.zeros((4, 3), np.float32), 1, r"prev_chunk: .*\(T, 2\)"),
        (np.full((4, 2), np.nan, np.float32), 1, "prev_chunk: .*finite"),
    ],
)
def test_what_cannot_be_continued_is_refused(policy, actions, delay, message):
    with pytest.raises(ValueError, match=message):
        policy.predict([make_observation(0)], ["lift"], seeds=[0], previous=[PreviousChunk(actions, delay)])


@pytest.mark.parametrize("caller_s_mode", [False, True])
def test_real_time_chunking_as_published_draws_the_chunk_and_leaves_no_trace(policy, caller_s_mode):
    observations, texts = [make_observation(0), make_observation(1)], ["lift"] * 2
    free = policy.predict(observations, texts, seeds=[1, 2]).actions
    rest = np.random.default_rng(9).normal(size=(5, 2)).astype(np.float32)
    previous = [PreviousChunk(rest, 3, 5.0), None]
    with torch.inference_mode(caller_s_mode):
        guided = policy.predict(observations, texts, seeds=[1, 2], previous=previous).actions
    assert np.abs(guided[0, :3] - rest[:3]).mean() < 0.6 * np.abs(free[0, :3] - rest[:3]).mean()
    np.testing.assert_allclose(guided[1], free[1], atol=1e-5)
    np.testing.assert_allclose(policy.predict(observations, texts, seeds=[1, 2]).actions, free, atol=1e-6)


def test_a_batch_has_one_guidance_weight(policy):
    rest = np.zeros((4, 2), np.float32)
    previous = [PreviousChunk(rest, 1, 5.0), PreviousChunk(rest, 1)]
    with pytest.raises(ValueError, match="max_guidance_weight: expected the same"):
        policy.predict([make_observation(0)] * 2, ["lift"] * 2, seeds=[0, 1], previous=previous)


def test_known_actions_are_kept_exactly_by_a_policy_that_was_trained_for_them(policy, monkeypatch):
    observations, texts = [make_observation(0), make_observation(1)], ["lift"] * 2
    rest = np.random.default_rng(9).normal(size=(5, 2)).astype(np.float32)
    previous = [PreviousChunk(rest, 3, known=True), None]
    with pytest.raises(ValueError, match="a model that was trained with simulated_delay above 0, got 0"):
        policy.predict(observations, texts, seeds=[1, 2], previous=previous)
    monkeypatch.setattr(policy.model.config, "simulated_delay", 3)
    free = policy.predict(observations, texts, seeds=[1, 2]).actions
    after = policy.predict(observations, texts, seeds=[1, 2], previous=previous).actions
    np.testing.assert_allclose(after[0, :3], rest[:3], atol=1e-5)
    assert np.abs(after[0, 3:] - free[0, 3:]).max() > 1e-4, "the others read them"
    np.testing.assert_allclose(after[1], free[1], atol=1e-5)
    further = rest.copy()
    further[3:] += 1  # rows beyond the delay are left to the policy
    again = policy.predict(observations, texts, seeds=[1, 2], previous=[PreviousChunk(further, 3, known=True), None])
    np.testing.assert_allclose(again.actions, after, atol=1e-6)
    with pytest.raises(ValueError, match="delay: expected 0 to 3 steps"):
        policy.predict(observations[:1], texts[:1], seeds=[1], previous=[PreviousChunk(rest, 4, known=True)])
    with pytest.raises(ValueError, match="known_actions: expected the same for the whole batch"):
        policy.predict(observations, texts, seeds=[1, 2], previous=[previous[0], PreviousChunk(rest, 1)])
    with pytest.raises(ValueError, match="give one of the two"):
        PreviousChunk(rest, 1, 5.0, known=True)


def test_a_flow_from_zero_noise_has_one_answer_whatever_the_seed(policy):
    """The model's own sampler with zeros is what comes out; and a setting that does nothing is refused."""
    observations, texts = [make_observation(0), make_observation(1)], ["lift", "lift"]
    model, processor = policy.model, policy.processor
    still = SyVLAPolicy(model, processor, "arm", policy.view_cameras, noise="zero")
    chunks = still.predict(observations, texts, seeds=[1, 2]).actions
    np.testing.assert_array_equal(chunks, still.predict(observations, texts, seeds=[3, 4]).actions)
    inputs = still.inputs([one["images"] for one in observations], [one["state"] for one in observations], texts)
    intention = still.intention(inputs)
    with torch.no_grad():
        zeros = torch.zeros(2, *still.chunk_shape)
        actions = model.sample_actions(
            intention.query_states, inputs.expert, condition_mask=intention.mask, noise=zeros
        )
    np.testing.assert_allclose(chunks, policy.physical(actions, inputs), atol=1e-5)
    assert np.abs(chunks - policy.predict(observations, texts, seeds=[1, 2]).actions).max() > 1e-3
    assert (still.identity()["noise"], "noise" in policy.identity()) == ("zero", False)
    with pytest.raises(ValueError, match="noise: expected one of random, zero, got 'none'"):
        SyVLAPolicy(model, processor, "arm", policy.view_cameras, noise="none")
    with pytest.raises(ValueError, match="noise: the episodes of this run are sampled by flow_sde"):
        SyVLABackend(model, processor, sampler=RolloutSampler(4, 0.5), noise="zero")
    assert SyVLABackend(model, processor, noise="zero").version != SyVLABackend(model, processor).version
