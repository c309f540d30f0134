"""Acting: what is seen and said moves the actions, and a seed fixes them."""

import pytest
import torch


@pytest.fixture
def observation(tiny_processor, make_item):
    """Builds model inputs of one observation; keyword arguments replace fields of the item."""

    def make(seed=1, **changes):
        item = make_item(seed, actions=None, **changes)
        return tiny_processor.collate([item], padding_side="left")

    return make


@pytest.fixture
def noise():
    return torch.randn(1, 8, 14, generator=torch.Generator().manual_seed(0))


def spread(a, b) -> float:
    return (a - b).abs().max().item()


def test_images_of_either_path_move_the_actions(tiny_model, observation, noise):
    """The VLM's pictures alone and the expert's pictures alone; equal ones give equal actions."""
    seen, other = observation(1), observation(2)
    other["state"] = seen["state"]
    base = tiny_model.predict_actions(**seen, noise=noise)
    vlm_only = tiny_model.predict_actions(**{**seen, "pixel_values": other["pixel_values"]}, noise=noise)
    expert_only = {**seen, "expert_pixel_values": other["expert_pixel_values"]}
    expert_only = tiny_model.predict_actions(**expert_only, noise=noise)
    assert torch.equal(tiny_model.predict_actions(**seen, noise=noise).actions, base.actions)
    assert spread(vlm_only.query_states, base.query_states) > 1e-3
    assert spread(vlm_only.actions, base.actions) > 1e-4
    assert torch.equal(expert_only.query_states, base.query_states)
    assert spread(expert_only.actions, base.actions) > 1e-3


def test_each_view_counts(tiny_model, observation, make_item, noise):
    base = tiny_model.predict_actions(**observation(1), noise=noise)
    fresh = make_item(9)["images"]
    for view in fresh:
        changed = observation(1, images={**make_item(1)["images"], view: fresh[view]})
        output = tiny_model.predict_actions(**changed, noise=noise)
        assert spread(output.query_states, base.query_states) > 1e-4, view
        assert spread(output.actions, base.actions) > 1e-4, view


def test_instruction_moves_query_states_and_actions(tiny_model, observation, noise):
    base = tiny_model.predict_actions(**observation(1), noise=noise)
    other = tiny_model.predict_actions(**observation(1, text="lift the blue cube"), noise=noise)
    assert spread(other.query_states, base.query_states) > 1e-3
    assert spread(other.actions, base.actions) > 1e-5


def test_state_moves_the_actions_but_not_the_query_states(tiny_model, observation, make_item, noise):
    base = tiny_model.predict_actions(**observation(1), noise=noise)
    moved = tiny_model.predict_actions(**observation(1, state=make_item(5)["state"]), noise=noise)
    assert torch.equal(moved.query_states, base.query_states)
    assert spread(moved.actions, base.actions) > 1e-3


def test_seed_fixes_the_actions(tiny_model, observation):
    inputs = observation(1)

    def act(seed):
        return tiny_model.predict_actions(**inputs, generator=torch.Generator().manual_seed(seed)).actions

    assert torch.equal(act(1), act(1))
    assert spread(act(1), act(2)) > 1e-2
    torch.manual_seed(5)
    first = tiny_model.predict_actions(**inputs).actions
    torch.manual_seed(5)
    assert torch.equal(tiny_model.predict_actions(**inputs).actions, first)
    given = torch.randn((1, 8, 14), generator=torch.Generator().manual_seed(1))
    assert torch.equal(tiny_model.predict_actions(**inputs, noise=given).actions, act(1))


def test_number_of_flow_steps_comes_from_the_call_or_the_config(tiny_model, observation, noise):
    calls, times = [], []
    encode, velocity = tiny_model.expert.encode_times, tiny_model.expert.velocity_at
    tiny_model.expert.encode_times = lambda t: times.append(t.tolist()) or encode(t)
    tiny_model.expert.velocity_at = lambda *a: calls.append(a[1]) or velocity(*a)
    tiny_model.predict_actions(**observation(1), noise=noise, num_steps=4)
    assert times == [pytest.approx([0.0, 0.25, 0.5, 0.75])]
    assert len(calls) == 4
    calls.clear()
    tiny_model.config.num_inference_steps = 3
    tiny_model.predict_actions(**observation(1), noise=noise)
    assert len(calls) == 3
    with pytest.raises(ValueError, match="num_steps"):
        tiny_model.predict_actions(**observation(1), noise=noise, num_steps=0)


def test_images_and_prefix_are_encoded_once_for_all_steps(tiny_model, observation, noise):
    calls = {"encode_images": 0, "encode_prefix": 0}
    for name in calls:
        original = getattr(tiny_model.expert, name)

        def spy(*args, _name=name, _original=original):
            calls[_name] += 1
            return _original(*args)

        setattr(tiny_model.expert, name, spy)
    tiny_model.predict_actions(**observation(1), noise=noise, num_steps=7)
    assert calls == {"encode_images": 1, "encode_prefix": 1}


def test_actions_are_float32_without_gradient_and_zero_beyond_the_robot(tiny_model, observation, noise):
    tiny_model.to(torch.bfloat16)
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in observation(1, embodiment="arm").items()}
    output = tiny_model.predict_actions(**inputs, noise=noise)
    assert output.actions.shape == (1, 8, 14)
    assert output.actions.dtype == torch.float32
    assert not output.actions.requires_grad
    assert output.actions[..., 2:].eq(0).all()
    assert output.actions[..., :2].ne(0).all()


def test_thought_text_comes_from_the_saved_tokenizer(tiny_model, tiny_processor, observation, tmp_path):
    from syvla.modeling_syvla import SyVLAModel

    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    loaded = SyVLAModel.from_pretrained(tmp_path)
    output = loaded.predict_actions(**observation(1), think=True, max_new_tokens=5, min_new_tokens=3)
    ids = output.thought_ids[0]
    assert 3 <= len(ids) <= 5
    assert output.thoughts == [tiny_processor.tokenizer.decode(ids, skip_special_tokens=True).strip()]
