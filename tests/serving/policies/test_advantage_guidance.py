"""An advantage indicator in the prompt and guidance by it, against a flow that is integrated here."""

import numpy as np
import pytest
import torch

from syvla.modeling_syvla.expert_inputs import ExpertObservation
from syvla.serving.contract.requests import PreviousChunk
from syvla.serving.contract.rollout_sampler import RolloutSampler
from syvla.serving.policies.backend import SyVLABackend
from syvla.serving.policies.dual_system import DualSystemPolicy
from syvla.serving.policies.in_process import SyVLAPolicy

VIEWS = {"center": "head", "left_wrist": "left", "right_wrist": "right"}
TEXTS, SEEDS = ["lift", "put it down, please"], [3, 4]


def observation(seed):
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in VIEWS.values()}
    return {"images": images, "state": rng.normal(size=3).astype(np.float32)}


OBSERVATIONS = [observation(0), observation(1)]


@pytest.fixture
def parts(make_model, tiny_processor):
    tiny_processor.advantage_conditioned = True
    return make_model(advantage_conditioned=True), tiny_processor


def velocity_of(model, processor, advantage):
    """`(x, t) -> velocity` of both observations under prompts with this indicator; x (2, T, D)."""
    items = [
        {
            "images": {view: seen["images"][camera] for view, camera in VIEWS.items()},
            "state": seen["state"],
            "embodiment": "arm",
            "text": text,
            "advantage": advantage,
        }
        for seen, text in zip(OBSERVATIONS, TEXTS, strict=True)
    ]
    batch = processor.collate(items, padding_side="left")
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    states = model.predict_query_states(**prompt)[0]
    names = ("state", "embodiment_ids", "expert_pixel_values", "expert_view_mask")
    seen = ExpertObservation.checked(model.config, 2, **{name: batch[name] for name in names})
    context = model.encode_expert_context(states, seen)
    return lambda x, t: model.expert.predict_velocity(x, torch.full((2,), t), context)


@torch.no_grad()
def written_out(model, processor, weight):
    """Euler steps of `v_plain + weight * (v_positive - v_plain)`, normalized."""
    positive, plain = (velocity_of(model, processor, said) for said in ("positive", "none"))
    shape = (model.config.chunk_size, model.config.max_action_dim)
    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    steps = model.config.num_inference_steps
    for step in range(steps):
        with_it, without = positive(x, step / steps), plain(x, step / steps)
        x = x + ((1 - weight) * without + weight * with_it) / steps
    return x


@pytest.mark.parametrize("weight", [0.5, 2.5])
def test_the_guided_chunk_is_the_weighted_flow_of_both_prompts(parts, weight):
    policy = SyVLAPolicy(*parts, "arm", VIEWS, advantage_guidance=weight)
    expected = parts[1].decode_actions(
        written_out(*parts, weight)[..., :2], "arm", np.stack([one["state"] for one in OBSERVATIONS])
    )
    found = policy.predict(OBSERVATIONS, TEXTS, seeds=SEEDS).actions
    np.testing.assert_allclose(found, expected, atol=1e-4)
    plainly = SyVLAPolicy(*parts, "arm", VIEWS).predict(OBSERVATIONS, TEXTS, seeds=SEEDS).actions
    assert np.abs(found - plainly).max() > 1e-4, "guidance should matter"


def test_without_a_weight_or_with_one_the_prompt_says_positive(parts):
    expected = written_out(*parts, 1.0)[..., :2]
    states = np.stack([one["state"] for one in OBSERVATIONS])
    for weight in (None, 1.0):
        policy = SyVLAPolicy(*parts, "arm", VIEWS, advantage_guidance=weight)
        chunks = policy.predict(OBSERVATIONS, TEXTS, seeds=SEEDS).actions
        np.testing.assert_allclose(chunks, parts[1].decode_actions(expected, "arm", states), atol=1e-4)
        assert "advantage_guidance" not in policy.identity()


def test_predict_actions_takes_both_prompts(parts):
    model, processor = parts
    images = [{view: one["images"][camera] for view, camera in VIEWS.items()} for one in OBSERVATIONS]
    states = [one["state"] for one in OBSERVATIONS]
    inputs, plain = (
        processor(images, TEXTS, state=states, embodiment=["arm"] * 2, advantage=said) for said in (None, ["none"] * 2)
    )
    noise = torch.stack([torch.randn(8, 14, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    ids = {"plain_input_ids": plain["input_ids"], "plain_attention_mask": plain["attention_mask"]}
    found = model.predict_actions(**inputs, noise=noise, advantage_guidance=2.5, **ids).actions
    torch.testing.assert_close(found[..., :2], written_out(*parts, 2.5)[..., :2], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="plain_input_ids: expected together with an advantage_guidance other than 1"):
        model.predict_actions(**inputs, advantage_guidance=2.5)
    with pytest.raises(ValueError, match="plain_input_ids: expected together"):
        model.predict_actions(**inputs, **ids)
    with pytest.raises(ValueError, match="advantage_guidance: expected without think=True"):
        model.predict_actions(**inputs, advantage_guidance=2.5, **ids, think=True, tokenizer=processor.tokenizer)


@pytest.mark.parametrize("stitching", [{}, {"max_guidance_weight": 5.0}, {"known": True}])
def test_a_guided_chunk_continues_the_previous_one(parts, stitching):
    parts[0].config.simulated_delay = 3 if "known" in stitching else 0
    policy = SyVLAPolicy(*parts, "arm", VIEWS, advantage_guidance=2.0)
    rest = np.random.default_rng(9).normal(size=(5, 2)).astype(np.float32)
    free = policy.predict(OBSERVATIONS, TEXTS, seeds=SEEDS).actions
    previous = [PreviousChunk(rest, 3, **stitching), None]
    found = policy.predict(OBSERVATIONS, TEXTS, seeds=SEEDS, previous=previous).actions
    np.testing.assert_allclose(found[1], free[1], atol=1e-4)
    assert np.abs(found[0, :3] - rest[:3]).mean() < 0.6 * np.abs(free[0, :3] - rest[:3]).mean()


def test_thoughts_and_the_background_vlm_keep_both_prompts(parts):
    """The same thought stands in both prompts, and query states of the background carry the plain ones."""
    policy = SyVLAPolicy(*parts, "arm", VIEWS, advantage_guidance=2.0, think=True, max_new_tokens=3)
    assert len(policy.predict(OBSERVATIONS, TEXTS, seeds=SEEDS).thoughts) == 2
    policy = SyVLAPolicy(*parts, "arm", VIEWS, advantage_guidance=2.0)
    background = DualSystemPolicy(policy)
    try:
        images, states = ([one[name] for one in OBSERVATIONS] for name in ("images", "state"))
        tickets = [background.submit(images[i], states[i], TEXTS[i], str(i)) for i in range(2)]
        chunks = background.predict(images, states, tickets, seeds=SEEDS).actions
    finally:
        background.close()
    np.testing.assert_allclose(chunks, policy.predict(OBSERVATIONS, TEXTS, seeds=SEEDS).actions, atol=1e-4)


def test_a_server_tells_its_weight_and_is_another_policy_with_it(parts):
    plain, guided = (SyVLABackend(*parts, advantage_guidance=weight) for weight in (None, 2.0))
    assert guided.metadata()["advantage_guidance"] == 2.0
    assert plain.metadata()["advantage_conditioned"] is True
    assert plain.version != guided.version
    assert SyVLABackend(*parts, advantage_guidance=1.0).version == plain.version
    with pytest.raises(ValueError, match="advantage_guidance: the episodes of this run are sampled by flow_sde"):
        SyVLABackend(*parts, advantage_guidance=2.0, sampler=RolloutSampler(10, 0.5))


def test_what_a_checkpoint_was_not_trained_for_is_refused(tiny_model, tiny_processor, make_item, parts):
    with pytest.raises(ValueError, match="advantage_conditioned: the processor has True, the model False"):
        SyVLAPolicy(tiny_model, tiny_processor, "arm", VIEWS)
    tiny_processor.advantage_conditioned = False
    with pytest.raises(
        ValueError, match=r"advantage_guidance: this checkpoint was not trained with .* --objective recap"
    ):
        SyVLAPolicy(tiny_model, tiny_processor, "arm", VIEWS, advantage_guidance=2.0)
    with pytest.raises(ValueError, match="advantage: 'negative' has no meaning for this checkpoint"):
        tiny_processor.collate([make_item(advantage="negative")])
    tiny_processor.advantage_conditioned = True
    with pytest.raises(ValueError, match="advantage: expected one of positive, negative, none, got 'good'"):
        tiny_processor.collate([make_item(advantage="good")])
    for weight in (0, -1.0, float("nan"), float("inf"), True):
        with pytest.raises(ValueError, match="advantage_guidance: expected a positive number"):
            SyVLAPolicy(*parts, "arm", VIEWS, advantage_guidance=weight)
    parts[0].optimize_for_inference(compile=True)
    with pytest.raises(ValueError, match="compiled flow steps take no guidance"):
        SyVLAPolicy(*parts, "arm", VIEWS, advantage_guidance=2.0)


def test_configurations_refuse_the_field_where_it_has_no_meaning(make_model):
    with pytest.raises(ValueError, match="advantage_conditioned: expected action_head='flow_matching'"):
        make_model(advantage_conditioned=True, action_head="l1_regression")
    with pytest.raises(ValueError, match="advantage_conditioned: expected true or false, got 'yes'"):
        make_model(advantage_conditioned="yes")


def test_the_field_is_saved_with_model_and_processor(parts, tmp_path):
    model, processor = parts
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(model.config).from_pretrained(tmp_path).advantage_conditioned is True
    assert type(processor).from_pretrained(tmp_path).advantage_conditioned is True
