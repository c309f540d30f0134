"""Tied weights and the size of the vocabulary."""

import pytest
import torch
from contract_subjects import POLICY, TEXT, text_batch

from syvla.modeling_syvla import SyVLAConfig

with_generated_text = pytest.mark.applies(lambda subject: subject.can_generate)


@with_generated_text
def test_the_tied_head_is_named_by_its_place_in_this_model(subject):
    model = subject.model()
    (pair,) = model._tied_weights_keys.items()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert parameters[pair[0]] is model.get_output_embeddings().weight
    assert parameters[pair[1]] is model.get_input_embeddings().weight
    assert parameters[pair[0]] is parameters[pair[1]]
    assert model.all_tied_weights_keys == dict([pair])


@pytest.mark.applies(lambda subject: subject in (TEXT, POLICY))
def test_an_untied_head_stays_untied_and_is_saved(subject, tmp_path):
    vlm = SyVLAConfig.tiny().vlm_config.to_dict() | {"tie_word_embeddings": False}
    vlm["text_config"]["tie_word_embeddings"] = False
    cls = type(subject.model())
    model = cls(SyVLAConfig.tiny(vlm_config=vlm))
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert model.all_tied_weights_keys == {}
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_output_embeddings().weight, model.get_output_embeddings().weight)
    assert loaded.get_output_embeddings().weight is not loaded.get_input_embeddings().weight


@with_generated_text
@torch.no_grad()
def test_resized_embeddings_keep_their_rows_stay_tied_and_are_saved(subject, tmp_path):
    model = subject.model()
    old = model.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(520, mean_resizing=False)
    assert model.get_input_embeddings().num_embeddings == 520
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[: len(old)], old)
    assert model.config.get_text_config().vocab_size == 520
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert model.generate(text_batch()["input_ids"][:, 6:], max_new_tokens=2, eos_token_id=None).shape[1] == 11
