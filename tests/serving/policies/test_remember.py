"""A policy that remembers its last call answers as one that does not, and guided calls read their images once."""

import numpy as np
import pytest
import torch
from image_encoders import SIGLIP

from syvla.serving.policies.in_process import REMEMBERED, SyVLAPolicy

VIEWS = {"center": "head", "left_wrist": "left", "right_wrist": "right"}


def observation(seed):
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in VIEWS.values()}
    return {"images": images, "state": rng.normal(size=3).astype(np.float32)}


@pytest.fixture
def images_seen(tiny_model):
    seen = []
    tiny_model.vlm.model.visual.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs.get("grid_thw", args[-1] if args else None))), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("think", [False, True])
def test_answers_of_an_episode_are_the_same(tiny_model, tiny_processor, images_seen, think):
    options = {"think": think, "max_new_tokens": 6}
    plain = SyVLAPolicy(tiny_model, tiny_processor, "arm", VIEWS, **options)
    remembers = SyVLAPolicy(tiny_model, tiny_processor, "arm", VIEWS, remember=True, **options)
    calls = [(0, "lift"), (0, "lift"), (1, "lift"), (0, "put it down"), (1, "lift")]
    for seed, text in calls:
        expected = plain.predict([observation(seed)], [text], seeds=[3])
        images_seen.clear()
        found = remembers.predict([observation(seed)], [text], seeds=[3])
        np.testing.assert_allclose(found.actions, expected.actions, atol=1e-5)
        assert found.thoughts == expected.thoughts
    assert sum(images_seen) == 0, "the last prompt with this instruction was the same"
    memory = remembers._memories["lift"]
    if think:
        assert memory.accepted > 0
    assert memory.reused > 40


def test_batches_and_many_instructions(tiny_model, tiny_processor):
    policy = SyVLAPolicy(tiny_model, tiny_processor, "arm", VIEWS, remember=True)
    policy.predict([observation(0), observation(1)], ["lift", "lift"], seeds=[3, 4])
    assert not policy._memories, "a batch is of several episodes"
    for number in range(REMEMBERED + 2):
        policy.predict([observation(0)], [f"lift {number}"], seeds=[3])
    assert list(policy._memories) == [f"lift {number}" for number in range(2, REMEMBERED + 2)]


def test_a_model_that_cannot_is_refused_when_the_policy_is_made(tiny_model, tiny_processor):
    tiny_model.optimize_for_inference(static_thoughts=True)
    with pytest.raises(ValueError, match="memory: a key/value cache of fixed size cannot take tokens back"):
        SyVLAPolicy(tiny_model, tiny_processor, "arm", VIEWS, remember=True)


def test_guided_calls_look_at_their_images_once(make_model, tiny_processor):
    """Both prompts and both halves of the flow: one pass of either image encoder over three views."""
    tiny_processor.advantage_conditioned = True
    tiny_processor.expert_image_processor.size = {"height": SIGLIP["image_size"], "width": SIGLIP["image_size"]}
    model = make_model(advantage_conditioned=True, expert_vision_config=SIGLIP, expert_image_size=SIGLIP["image_size"])
    policy = SyVLAPolicy(model, tiny_processor, "arm", VIEWS, advantage_guidance=2.0)
    seen = {"vlm": [], "expert": [], "tokens": []}

    def hook(module, note):
        module.register_forward_pre_hook(lambda _, args, kwargs: note(args, kwargs), with_kwargs=True)

    hook(model.vlm.model.visual, lambda a, k: seen["vlm"].append(len(k.get("grid_thw", a[-1] if a else None))))
    hook(model.expert.vision_tower, lambda a, k: seen["expert"].append(len(k["pixel_values"])))
    layer = model.vlm.model.language_model.layers[0]
    hook(layer, lambda a, k: seen["tokens"].append((a[0] if a else k["hidden_states"]).shape[1]))
    policy.predict([observation(0)], ["lift"], seeds=[3])
    assert (seen["vlm"], seen["expert"]) == ([3], [3])
    whole, rest = seen["tokens"]
    assert rest < whole / 2, "the head of both prompts, with the images, is read once"


@torch.no_grad()
def test_guided_flows_whose_prefix_is_shared(make_model, tiny_processor):
    """With `cross_attention_scope="suffix"` the expert's prefix is doubled with the rest."""
    tiny_processor.advantage_conditioned = True
    model = make_model(advantage_conditioned=True, expert={"cross_attention_scope": "suffix"})
    policy = SyVLAPolicy(model, tiny_processor, "arm", VIEWS, advantage_guidance=2.0)
    inputs = policy.inputs([observation(0)["images"]], [observation(0)["state"]], ["lift"])
    intention = policy.intention(inputs)
    twice, indicated, plain = (
        model.encode_expert_context(states, inputs.expert, twice=len(states) == 2)
        for states in (
            torch.cat((intention.query_states, intention.plain_states)),
            intention.query_states,
            intention.plain_states,
        )
    )
    for both, first, second in zip(twice.prefix, indicated.prefix, plain.prefix, strict=True):
        torch.testing.assert_close(both[0], torch.cat((first[0], second[0])))
