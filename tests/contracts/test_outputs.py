"""What a forward takes and gives: tuples, pytrees, hidden states, attentions, and names that nobody reads."""

import inspect

import pytest
import torch
from contract_subjects import POLICY, QWEN, TEXT, VALUE, text_batch
from torch.utils import _pytree as pytree
from transformers.utils import output_capturing
from transformers.utils.generic import ModelOutput

from syvla.modeling_syvla.padding_free import set_padding_free


def batch_without_loss(subject):
    return {k: v for k, v in subject.batch().items() if k not in ("labels", "returns", "action_mask")}


@torch.no_grad()
def test_return_dict_false_gives_the_same_values_as_a_tuple(subject):
    model, batch = subject.model(), subject.batch()
    output, values = model(**batch), model(**batch, return_dict=False)
    assert type(values) is tuple
    expected = output.to_tuple()
    assert len(values) == len(expected)
    tensors = [(a, b) for a, b in zip(values, expected, strict=True) if isinstance(b, torch.Tensor)]
    assert tensors
    for value, wanted in tensors:
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_output_goes_through_a_pytree(subject):
    """DDP with a static graph or a search for unused parameters takes outputs apart and rebuilds them so."""
    output = subject.model()(**subject.batch())
    leaves, structure = pytree.tree_flatten(output)
    assert any(isinstance(leaf, torch.Tensor) for leaf in leaves)
    rebuilt = pytree.tree_unflatten(leaves, structure)
    assert type(rebuilt) is type(output)
    assert rebuilt.keys() == output.keys()
    assert torch.equal(rebuilt.loss, output.loss)


@pytest.mark.applies(lambda subject: subject.ours)
def test_no_field_of_an_output_shadows_a_method_of_dict(subject):
    output = subject.model()(**subject.batch())
    assert isinstance(output, ModelOutput)
    assert not set(type(output).__dataclass_fields__) & set(dir(dict))


@torch.no_grad()
@pytest.mark.applies(lambda subject: subject.has_text)
def test_hidden_states_are_one_per_layer_and_the_embeddings(subject):
    model = subject.model()
    output = model(**subject.batch(), output_hidden_states=True)
    layers = (getattr(model.config, "dit_config", None) or model.config.get_text_config()).num_hidden_layers
    assert len(output.hidden_states) == layers + 1
    assert {h.shape for h in output.hidden_states} == {output.hidden_states[0].shape}
    assert output.hidden_states[0].shape[0] == 2


@torch.no_grad()
@pytest.mark.applies(lambda subject: subject.has_text)
def test_attentions_are_one_per_layer_and_sum_to_one(subject):
    model = subject.model()
    model.set_attn_implementation("eager")
    output = model(**subject.batch(), output_attentions=True)
    layers = (getattr(model.config, "dit_config", None) or model.config.get_text_config()).num_hidden_layers
    assert len(output.attentions) == layers
    for attention in output.attentions:  # (B, heads, queries, keys)
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


@torch.no_grad()
def test_the_value_is_read_from_the_last_hidden_state_of_the_value_model():
    model = VALUE.model()
    output = model(**VALUE.batch(), output_hidden_states=True)
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 14, 64)] * 3  # value, state, 3 views of 4; 2 layers
    torch.testing.assert_close(model.value_head(output.hidden_states[-1][:, 0]).squeeze(-1), output.value)
    torch.testing.assert_close(output.value, model(**VALUE.batch()).value)


def test_the_value_model_keeps_no_attentions_and_says_so():
    with pytest.raises(TypeError, match="output_attentions"):
        VALUE.model()(**VALUE.batch(), output_attentions=True)


@torch.no_grad()
@pytest.mark.applies(lambda subject: subject in (TEXT, POLICY, QWEN))
def test_hidden_states_may_be_chosen_by_their_places(subject):
    if not hasattr(output_capturing, "selected_hidden_states"):
        pytest.skip("this transformers returns all hidden states or none")
    model, batch = subject.model(), subject.batch()
    every = model(**batch, output_hidden_states=True).hidden_states
    chosen = model(**batch, output_hidden_states=[0, -1]).hidden_states
    assert len(chosen) == 3
    assert chosen[1] is None
    assert torch.equal(chosen[0], every[0])
    assert torch.equal(chosen[-1], every[-1])


@torch.no_grad()
@pytest.mark.applies(lambda subject: subject.ours)
def test_what_the_configuration_says_holds_where_the_call_says_nothing(subject):
    model, batch = subject.model(), subject.batch()
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == 3
    assert "hidden_states" not in model(**batch, output_hidden_states=False)
    model.config.output_hidden_states = False
    expected = model(**batch)
    model.config.return_dict = False
    values = model(**batch)
    assert type(values) is tuple
    assert len(values) == len(expected.to_tuple())
    assert torch.equal(model(**batch, return_dict=True).loss, expected.loss)
    if subject.has_text:
        assert type(model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])) is tuple


@torch.no_grad()
def test_attentions_that_the_configuration_asks_for_are_returned():
    for subject in (TEXT, POLICY):
        model = subject.model()
        model.set_attn_implementation("eager")
        model.config.output_attentions = True
        assert len(model(**subject.batch()).attentions) == 2


def test_an_argument_that_nobody_reads_is_refused(subject):
    with pytest.raises(TypeError, match="no_such_argument"):
        subject.model()(**subject.batch(), no_such_argument=torch.ones(2))


@pytest.mark.applies(lambda subject: subject.ours)
def test_every_tensor_of_a_batch_is_a_named_argument(subject):
    """`Trainer` removes columns that the signature does not name."""
    named = inspect.signature(type(subject.model()).forward).parameters
    assert not set(subject.batch()) - set(named)


@pytest.mark.parametrize("name", ["state", "actions", "expert_pixel_values"])
def test_the_text_model_refuses_a_robots_tensors(name):
    with pytest.raises(TypeError, match=name):
        TEXT.model()(**TEXT.batch(), **{name: torch.ones(2, 3)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs_embeds", torch.ones(2, 23, 64)),
        ("position_ids", torch.zeros(3, 2, 23, dtype=torch.long)),
        ("use_cache", True),
        ("past_key_values", object()),
        ("pixel_values_videos", torch.ones(4, 4)),
    ],
)
def test_the_policy_refuses_by_name_what_it_finds_out_itself(name, value):
    with pytest.raises(ValueError, match=f"^{name}: SyVLAModel does not take it: "):
        POLICY.model()(**POLICY.batch(), **{name: value})


@torch.no_grad()
def test_the_policy_takes_what_peft_always_passes():
    model, batch = POLICY.model(), POLICY.batch()
    asked = {"inputs_embeds": None, "position_ids": None, "use_cache": False, "output_attentions": None}
    assert torch.equal(model(**batch, **asked, output_hidden_states=False).loss, model(**batch).loss)


def test_attentions_that_are_not_kept_are_refused_by_name():
    model = POLICY.model()
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"output_attentions: .*'sdpa'.*set_attn_implementation\('eager'\)"):
        model(**POLICY.batch(), output_attentions=True)


@torch.no_grad()
def test_hidden_states_without_padding_are_those_of_the_padded_batch():
    model, batch = POLICY.model(), POLICY.batch()
    ids = torch.cat((torch.full((2, 3), 480), batch["input_ids"]), dim=1)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    batch |= {"input_ids": ids, "attention_mask": mask}
    batch = {k: v for k, v in batch.items() if k not in ("labels", "mm_token_type_ids")}
    padded = model(**batch, output_hidden_states=True).hidden_states
    set_padding_free(model)
    flat = model(**batch, output_hidden_states=True).hidden_states
    real = mask.bool()
    for a, b in zip(padded, flat, strict=True):
        torch.testing.assert_close(b[real], a[real], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.applies(lambda subject: subject.has_text)
def test_image_features_are_the_vlms(subject):
    if subject.name.startswith("PI0"):
        pytest.skip("PI0 takes images per camera; its method is asked of Qwen2.5-VL's kind")
    model, batch = subject.model(), subject.batch()
    got = model.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True)
    vlm = getattr(model, "vlm", model)
    expected = vlm.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"], return_dict=True)
    assert torch.equal(torch.cat(tuple(got.pooler_output)), expected.pooler_output)


@torch.no_grad()
@pytest.mark.applies(lambda subject: subject in (TEXT, POLICY, QWEN))
def test_keywords_of_image_features_reach_the_image_encoder(subject):
    model, batch = subject.model(), subject.batch()
    model.set_attn_implementation("eager")
    images = batch["pixel_values"], batch["image_grid_thw"]
    asked = {"output_hidden_states": True, "output_attentions": True}
    expected = getattr(model, "vlm", model).model.visual(images[0], grid_thw=images[1], return_dict=True, **asked)
    got = model.get_image_features(*images, **asked)
    assert len(got.hidden_states) == len(expected.hidden_states) > 0
    assert len(got.attentions) == len(expected.attentions) > 0
    for ours, theirs in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(ours, theirs)
    assert type(model.get_image_features(*images, return_dict=False)) is tuple


def test_image_tokens_without_their_images_are_refused_by_name():
    model, batch = POLICY.model(), POLICY.batch()
    del batch["image_grid_thw"]
    with pytest.raises(
        ValueError, match=r"image_grid_thw: expected \(images, 3\), got None; input_ids hold 8 image tokens"
    ):
        model(**batch)


@torch.no_grad()
@pytest.mark.applies(lambda subject: subject.can_generate)
def test_the_base_model_gives_what_the_head_reads(subject):
    """TRL runs `base_model` and applies the output embeddings to its hidden states."""
    model, batch = subject.model(), text_batch()
    del batch["labels"]
    hidden = model.base_model(**batch).last_hidden_state
    logits = getattr(model, "vlm", model)(**batch).logits
    torch.testing.assert_close(model.get_output_embeddings()(hidden), logits, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.applies(lambda subject: subject.can_generate)
def test_the_decoder_is_the_language_model(subject):
    model = subject.model()
    decoder = model.get_decoder()
    assert decoder.embed_tokens is model.get_input_embeddings()
    assert len(decoder.layers) == model.config.get_text_config().num_hidden_layers
