"""Checkpoints: what is saved is what is loaded, bit for bit, and what does not fit is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from image_encoders import SIGLIP
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from syvla.modeling_syvla import SyVLAConfig, SyVLAForConditionalGeneration, SyVLAModel
from syvla.processing import SyVLAProcessor


def assert_same_weights(a, b):
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    for name, value in a.state_dict().items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name


def names_on_disk(folder: Path) -> list[str]:
    names = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names += file.keys()
    return sorted(names)


@pytest.fixture
def batch(tiny_processor, unequal_items):
    generator = torch.Generator().manual_seed(3)
    given = {"noise": torch.randn(3, 8, 14, generator=generator), "timestep": torch.tensor([0.2, 0.5, 0.8])}
    return {**tiny_processor.collate(unequal_items), **given}


@pytest.mark.parametrize("vision", [None, SIGLIP], ids=["convolutional", "siglip"])
@pytest.mark.parametrize("shard", ["5GB", "300KB"])
def test_round_trip_is_bit_identical(make_model, batch, tmp_path, vision, shard):
    """Weights, loss and actions; buffers that no file holds (rotary frequencies, position ids) are rebuilt right."""
    model = make_model(**({"expert_vision_config": vision} if vision else {}))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard != "5GB")
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is SyVLAModel
    assert not loaded.training
    assert_same_weights(model, loaded)
    ours, theirs = dict(model.named_buffers()), dict(loaded.named_buffers())
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    with torch.no_grad():
        # Equal weights at another memory alignment may round differently in a matrix product.
        torch.testing.assert_close(model(**batch).loss, loaded(**batch).loss, atol=1e-6, rtol=1e-6)
        inputs = {k: v for k, v in batch.items() if k not in ("actions", "action_mask", "labels", "timestep")}
        actions = [m.predict_actions(**inputs).actions for m in (model, loaded)]
        torch.testing.assert_close(*actions, atol=1e-5, rtol=0)


def test_saving_a_loaded_model_writes_the_same_bytes(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "a")
    AutoModel.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_files_name_weights_as_the_modules_do_and_tied_ones_once(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    names = names_on_disk(tmp_path)
    assert names == sorted(n for n, _ in tiny_model.named_parameters())  # named_parameters gives tied ones once
    assert "vlm.lm_head.weight" not in names
    assert "vlm.model.language_model.embed_tokens.weight" in names
    loaded = SyVLAModel.from_pretrained(tmp_path)
    assert loaded.vlm.lm_head.weight is loaded.vlm.model.language_model.embed_tokens.weight


def test_text_head_loads_the_same_checkpoint(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is SyVLAForConditionalGeneration
    assert_same_weights(tiny_model.vlm, loaded.vlm)
    assert {name.split(".")[0] for name, _ in loaded.named_parameters()} == {"vlm"}
    assert loaded.generation_config.eos_token_id == tiny_model.generation_config.eos_token_id


def test_processor_comes_back_through_its_auto_class(tiny_model, tiny_processor, make_item, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SyVLAProcessor
    assert loaded.disagreements(AutoConfig.from_pretrained(tmp_path)) == []
    assert loaded.embodiments == tiny_processor.embodiments
    ours, theirs = (p.collate([make_item(1, thought="reach")]) for p in (tiny_processor, loaded))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():  # where torchvision is installed, AutoImageProcessor rounds a little differently
        torch.testing.assert_close(theirs[key], value, rtol=0, atol=1e-5, msg=key)


def test_dtype_of_the_checkpoint_is_kept_and_may_be_changed(tiny_model, tmp_path):
    tiny_model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert_same_weights(tiny_model, loaded)
    wide = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


# ---------------------------------------------------------------- what does not fit


def rewrite(folder: Path, change) -> None:
    """Apply `change` to the tensors of a single-file checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES = {
    "missing from the checkpoint: adapter.0.weight": lambda t: t.pop("adapter.0.weight"),
    "in the checkpoint but unknown to the model: expert.extra.weight": lambda t: t.update(
        {"expert.extra.weight": torch.zeros(2)}
    ),
    "of another shape: expert.norm.weight": lambda t: t.update({"expert.norm.weight": torch.zeros(3)}),
}


@pytest.mark.parametrize("message", DAMAGES)
@pytest.mark.parametrize("load", [SyVLAModel.from_pretrained, AutoModel.from_pretrained], ids=["class", "auto"])
def test_checkpoints_that_do_not_fit_are_refused_by_name(tiny_model, tmp_path, message, load):
    tiny_model.save_pretrained(tmp_path)
    rewrite(tmp_path, DAMAGES[message])
    with pytest.raises(ValueError, match=f"1 weights {message}.*allow_missing_weights=True"):
        load(tmp_path)
    loaded = load(tmp_path, allow_missing_weights=True)
    before, after = tiny_model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    name = message.split(": ")[1]
    for key, value in after.items():
        assert value.isfinite().all(), key
        assert value.shape == before[key].shape
        if key != name:
            assert torch.equal(value, before[key]), key
    if name == "adapter.0.weight":  # initialized as a new model would be, not left as it lay in memory
        assert after[name].std().item() == pytest.approx(64**-0.5, rel=0.05)


def test_all_that_does_not_fit_is_listed_at_once(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    for damage in DAMAGES.values():
        rewrite(tmp_path, damage)
    with pytest.raises(ValueError) as error:
        SyVLAModel.from_pretrained(tmp_path)
    for message in DAMAGES:
        assert message in str(error.value)


def test_a_missing_vlm_weight_is_refused_by_the_text_head_too(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda t: t.pop("vlm.model.visual.merger.mlp.0.weight"))
    with pytest.raises(ValueError, match=r"vlm\.model\.visual\.merger\.mlp\.0\.weight"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_loading_info_is_given_on_request(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    model, info = SyVLAModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is SyVLAModel
    assert not info["missing_keys"]


# ---------------------------------------------------------------- embodiments


def test_embodiment_ids_survive_the_sorting_of_keys_in_json(make_model, tmp_path):
    robots = {"zebra": {"state_dim": 3, "action_dim": 2}, "alpha": {"state_dim": 5, "action_dim": 4}}
    model = make_model(embodiments=robots)
    model.add_embodiment("middle", 6, 6)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["embodiments"]
    assert list(saved) == ["alpha", "middle", "zebra"], "JSON sorts them; only the stored id can tell"
    loaded = AutoModel.from_pretrained(tmp_path)
    assert {name: e["id"] for name, e in loaded.config.embodiments.items()} == {"zebra": 0, "alpha": 1, "middle": 2}
    assert_same_weights(model, loaded)
    loaded.add_embodiment("beta", 1, 1)
    assert loaded.config.embodiments["beta"]["id"] == 3


def test_a_further_embodiment_leaves_all_other_weights_and_results_alone(tiny_model, batch, tmp_path):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    with torch.no_grad():
        loss = tiny_model(**batch).loss
    tiny_model.add_embodiment("wide", 20, 30)
    after = tiny_model.state_dict()
    new = set(after) - set(before)
    assert len(new) == 12
    assert all(name.startswith("expert.embodiments.wide.") for name in new)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    for name in new:
        assert after[name].isfinite().all()
        assert name.endswith("bias") == (not after[name].any()), name
    with torch.no_grad():
        assert torch.equal(tiny_model(**batch).loss, loss), "the batch is narrower than the widest robot now"
    tiny_model.save_pretrained(tmp_path)
    assert_same_weights(tiny_model, AutoModel.from_pretrained(tmp_path))


def test_known_embodiments_are_added_once_and_not_with_other_dimensions(tiny_model):
    weight = tiny_model.expert.embodiments["arm"].state_encoder[0].weight
    tiny_model.add_embodiment("arm", 3, 2)
    assert tiny_model.expert.embodiments["arm"].state_encoder[0].weight is weight
    with pytest.raises(ValueError, match=r"embodiments.arm: already registered with state_dim=3, action_dim=2"):
        tiny_model.add_embodiment("arm", 4, 2)
    with pytest.raises(ValueError, match=r"'a\.b' is not a usable name"):
        tiny_model.add_embodiment("a.b", 4, 2)
    assert set(tiny_model.config.embodiments) == set(tiny_model.expert.embodiments) == {"tabletop", "arm"}


def test_embodiment_in_the_config_only_is_missing_from_the_checkpoint(tiny_model, batch, tmp_path):
    """The other way to add a robot: a changed config, with exactly its coders new."""
    tiny_model.save_pretrained(tmp_path)
    config = SyVLAConfig.from_pretrained(tmp_path)
    config.add_embodiment("wide", 20, 30)
    with pytest.raises(ValueError, match=r"12 weights missing from the checkpoint: expert\.embodiments\.wide"):
        AutoModel.from_pretrained(tmp_path, config=config)
    loaded = AutoModel.from_pretrained(tmp_path, config=config, allow_missing_weights=True)
    assert all(p.isfinite().all() and p.abs().max() < 10 for p in loaded.parameters())
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).loss, tiny_model(**batch).loss, atol=1e-6, rtol=1e-6)
