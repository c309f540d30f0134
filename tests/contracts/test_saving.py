"""What is saved is what is loaded: by class, by Auto class, from a state dict, in any dtype."""

import json

import pytest
import torch
from contract_subjects import POLICY, TEXT, VALUE, text_batch
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

from syvla.modeling_syvla import SyVLAConfig, SyVLAForConditionalGeneration, SyVLAModel


def assert_same_model(model, other):
    assert type(other) is type(model)
    own, theirs = model.state_dict(), other.state_dict()
    assert own.keys() == theirs.keys()
    for name, tensor in own.items():
        assert torch.equal(theirs[name], tensor), name


def test_reload_by_the_same_class(subject, tmp_path):
    model = subject.model()
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same_model(model, loaded)
    with torch.no_grad():
        expected, got = (subject.signal(m(**subject.batch())) for m in (model, loaded))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_reload_after_saving_a_state_dict(subject, tmp_path):
    """The Trainer saves so under DeepSpeed and FSDP."""
    model, fresh = subject.model(), subject.model(seed=5)
    fresh.save_pretrained(tmp_path, state_dict=model.state_dict())
    assert_same_model(model, type(model).from_pretrained(tmp_path))


def test_shards_come_back_whole(subject, tmp_path):
    model = subject.model()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_model(model, type(model).from_pretrained(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_dtype_holds_for_every_weight_and_is_remembered(subject, dtype, tmp_path):
    model = subject.model()
    model.save_pretrained(tmp_path / "a")
    half = type(model).from_pretrained(tmp_path / "a", dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    half.save_pretrained(tmp_path / "b")
    assert_same_model(half, type(model).from_pretrained(tmp_path / "b"))


def test_loading_goes_through_the_meta_device_without_a_trace(subject, tmp_path):
    model = subject.model()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not [n for n, t in (*loaded.named_parameters(), *loaded.named_buffers()) if t.is_meta]
    buffers = dict(loaded.named_buffers())
    for name, buffer in model.named_buffers():  # not in the file: computed anew
        assert torch.equal(buffers[name], buffer), name


@pytest.mark.parametrize("auto", [AutoModelForImageTextToText, AutoModelForMultimodalLM], ids=lambda a: a.__name__)
@pytest.mark.parametrize("saved_by", [TEXT, POLICY], ids=str)
def test_auto_classes_for_text_read_what_either_class_saved(auto, saved_by, tmp_path):
    model = saved_by.model()
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is SyVLAForConditionalGeneration
    assert_same_model(model.vlm, loaded.vlm)


@pytest.mark.parametrize("saved", [POLICY, VALUE], ids=str)
def test_auto_model_reads_policy_and_value_model(saved, tmp_path):
    model = saved.model()
    model.save_pretrained(tmp_path)
    assert_same_model(model, AutoModel.from_pretrained(tmp_path))


def test_one_checkpoint_has_two_classes_and_the_policy_keeps_all_its_weights(tmp_path):
    policy = POLICY.model()
    policy.save_pretrained(tmp_path)
    text = SyVLAForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_model(policy, SyVLAModel.from_pretrained(tmp_path))
    with torch.no_grad():
        assert torch.equal(text(**text_batch()).logits, policy.vlm(**text_batch()).logits)


def test_the_policy_takes_back_a_text_model_that_was_trained_on(tmp_path):
    policy = POLICY.model()
    policy.save_pretrained(tmp_path / "policy")
    text = SyVLAForConditionalGeneration.from_pretrained(tmp_path / "policy")
    with torch.no_grad():
        text.vlm.model.language_model.norm.weight.add_(0.5)
    text.save_pretrained(tmp_path / "text")
    trained = SyVLAForConditionalGeneration.from_pretrained(tmp_path / "text")
    policy.vlm.load_state_dict(trained.vlm.state_dict())
    with torch.no_grad():
        assert torch.equal(policy.vlm(**text_batch()).logits, text(**text_batch()).logits)


def test_the_policy_refuses_a_checkpoint_of_the_text_model_by_name(tmp_path):
    TEXT.model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"saved by SyVLAForConditionalGeneration.*SyVLAModel"):
        AutoModel.from_pretrained(tmp_path)


def test_a_plain_vlm_checkpoint_is_refused_by_name(tmp_path):
    """Checkpoints that earlier versions wrote from the text model are plain ones: the Auto class reads them."""
    model = TEXT.model()
    model.vlm.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen2_5_vl"
    with pytest.raises(ValueError, match=r"model_type: expected 'syvla'.*'qwen2_5_vl'.*AutoModelForImageTextToText"):
        SyVLAForConditionalGeneration.from_pretrained(tmp_path)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for name, tensor in model.vlm.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor), name


def test_a_configuration_survives_its_dictionary():
    config = SyVLAConfig.tiny()
    assert SyVLAConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert "text_config" not in json.loads(config.to_json_string())
    text = config.to_dict()["text_config"]
    assert {key: text[key] for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads")} == {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
    }


@pytest.mark.parametrize(("name", "value"), [("text_config", {"hidden_size": 32}), ("image_token_id", 7)])
def test_a_configuration_refuses_a_derived_entry_that_disagrees(name, value):
    with pytest.raises(ValueError, match=f"{name}: differs from the same entry of vlm_config"):
        SyVLAConfig.tiny(**{name: value})
    same = SyVLAConfig.tiny()
    assert SyVLAConfig.tiny(**{name: getattr(same, name)}).to_dict() == same.to_dict()


def test_the_image_token_of_the_configuration_is_the_vlms():
    config = SyVLAConfig.tiny()
    config.image_token_id = 77
    assert config.vlm_config.image_token_id == 77
