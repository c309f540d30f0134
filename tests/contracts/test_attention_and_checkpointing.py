"""Attention of every part by name, and the two ways of gradient checkpointing."""

import pytest
import torch
from contract_subjects import POLICY, TEXT, VALUE

from syvla.modeling_syvla import (
    SyVLAConfig,
    SyVLAForConditionalGeneration,
    SyVLAModel,
    SyVLAValueConfig,
    SyVLAValueModel,
)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_an_attention_implementation_reaches_every_part_with_the_same_result(subject, implementation):
    model, batch = subject.model(), subject.batch()
    expected = subject.signal(model(**batch))
    model.set_attn_implementation(implementation)
    if subject.has_text:
        assert model.get_decoder().config._attn_implementation == implementation
    torch.testing.assert_close(subject.signal(model(**batch)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", [SyVLAModel, SyVLAForConditionalGeneration], ids=lambda c: c.__name__)
def test_parts_may_have_other_attention_than_the_rest(cls):
    chosen = {"": "sdpa", "vlm_config": {"": "sdpa", "text_config": "eager"}}
    model = cls._from_config(SyVLAConfig.tiny(), attn_implementation=chosen)
    assert model.get_decoder().config._attn_implementation == "eager"
    assert model.vlm.model.visual.config._attn_implementation == "sdpa"


SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "vision_use_head": False,
}


@torch.no_grad()
@pytest.mark.parametrize("tower", ["eager", "sdpa"])
def test_the_value_models_image_encoder_may_have_other_attention_than_the_rest(tower, tmp_path):
    rest = {"eager": "sdpa", "sdpa": "eager"}[tower]
    chosen = {"": rest, "vision_config": tower}
    config = SyVLAValueConfig.tiny(vision_config=SIGLIP)
    model = SyVLAValueModel._from_config(config, attn_implementation="sdpa").eval()
    expected = model(**VALUE.batch()).value
    model.save_pretrained(tmp_path)
    loaded = SyVLAValueModel.from_pretrained(tmp_path, attn_implementation=chosen)
    model.set_attn_implementation(chosen)
    for other in (model, loaded):
        implementations = other.config._attn_implementation, other.vision_tower.config._attn_implementation
        assert implementations == (rest, tower)
        torch.testing.assert_close(other(**VALUE.batch()).value, expected, rtol=1e-4, atol=1e-5)


def gradients(model, batch):
    model.train()
    torch.manual_seed(0)
    model(**batch).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True], ids=["not_reentrant", "reentrant"])
def test_gradient_checkpointing_gives_the_same_gradients(subject, reentrant):
    if reentrant and subject is POLICY:
        pytest.skip("SyVLAModel refuses reentrant checkpointing by name: see the next test")
    expected = gradients(subject.model(), subject.batch())
    model = subject.model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    got = gradients(model, subject.batch())
    assert expected
    missing = expected.keys() - got.keys()
    assert not missing or (reentrant and all(".visual." in name or "vision_tower" in name for name in missing)), missing
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_the_policy_refuses_reentrant_checkpointing_by_name():
    model = POLICY.model()
    with pytest.raises(ValueError, match=r"use_reentrant=True does not work.*use_reentrant=False"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    assert not model.is_gradient_checkpointing
    TEXT.model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
