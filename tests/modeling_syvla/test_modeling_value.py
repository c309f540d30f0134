"""The value model: its size, what it depends on, and that it survives saving."""

import json

import pytest
import torch
from image_encoders import SIGLIP
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel, SyVLAValueConfig, SyVLAValueModel
from syvla.modeling_syvla.modeling_value import encode_instructions

ROBOTS = {"tabletop": {"state_dim": 14, "action_dim": 14}, "arm": {"state_dim": 3, "action_dim": 2}}


@pytest.fixture(params=[None, SIGLIP], ids=["convolutional", "siglip"])
def model(request):
    vision = {"vision_config": request.param} if request.param else {}
    torch.manual_seed(0)
    return SyVLAValueModel(SyVLAValueConfig.tiny(embodiments=ROBOTS, **vision)).eval()


@pytest.fixture
def batch(tiny_processor, unequal_items):
    return tiny_processor.collate(unequal_items)


def test_default_size_is_about_a_hundred_million():
    """google/siglip-base-patch16-224 without head has 85.8 M of them."""
    robot = {"cobot_magic": {"state_dim": 14, "action_dim": 14}}
    with torch.device("meta"):
        model, alone = SyVLAValueModel(SyVLAValueConfig(embodiments=robot)), SyVLAValueModel(SyVLAValueConfig())
    assert sum(p.numel() for p in alone.parameters()) == 99_305_729
    assert sum(p.numel() for p in model.parameters()) == 99_305_729 + 270_336, "a robot of 14 states"
    assert sum(p.numel() for p in model.vision_tower.parameters()) == 85_797_120
    d, width = 512, 1408
    layer = 4 * d * d + 3 * d * width + 2 * d
    assert sum(p.numel() for p in model.layers.parameters()) == 4 * layer


@torch.no_grad()
def test_a_batch_of_the_processor_gives_one_float32_value_per_sample(model, batch):
    values = model(**batch).value
    assert values.shape == (3,)
    assert values.dtype == torch.float32
    assert model(**batch).loss is None
    half = model.to(torch.bfloat16)(**batch).value
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, values, atol=0.1, rtol=0.1)


@torch.no_grad()
def test_batch_equals_single(model, batch, tiny_processor, unequal_items):
    singles = [model(**tiny_processor.collate([item])).value for item in unequal_items]
    torch.testing.assert_close(model(**batch).value, torch.cat(singles), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("filler", [1e4, float("nan")])
def test_content_of_a_missing_view_does_not_matter(model, batch, filler):
    expected = model(**batch).value
    missing = ~batch["expert_view_mask"]
    assert missing.any()
    batch["expert_pixel_values"][missing] = filler
    assert torch.equal(model(**batch).value, expected)


@torch.no_grad()
def test_every_view_its_place_and_the_state_move_the_value(model, batch):
    inputs = {k: batch[k][:1].clone() for k in ("expert_pixel_values", "expert_view_mask", "state", "embodiment_ids")}
    base = model(**inputs).value
    for view in range(3):
        pixels = inputs["expert_pixel_values"].clone()
        pixels[:, view] = -pixels[:, view]
        assert (model(**{**inputs, "expert_pixel_values": pixels}).value - base).abs() > 1e-5, view
    swapped = inputs["expert_pixel_values"][:, [1, 0, 2]]
    assert (model(**{**inputs, "expert_pixel_values": swapped}).value - base).abs() > 1e-6
    assert (model(**{**inputs, "state": inputs["state"] + 1}).value - base).abs() > 1e-4
    masked = torch.tensor([[True, True, False]])
    assert (model(**{**inputs, "expert_view_mask": masked}).value - base).abs() > 1e-5


def test_a_model_that_reads_the_instruction_values_the_same_observation_differently(batch):
    torch.manual_seed(0)
    model = SyVLAValueModel(SyVLAValueConfig.tiny(embodiments=ROBOTS, instruction_bytes=8)).eval()
    inputs = {name: batch[name][:1] for name in INPUTS}

    def value(text):
        with torch.no_grad():
            return model(**inputs, instruction=encode_instructions([text], 8)).value

    assert (value("block 7") - value("block 3")).abs() > 1e-5
    assert torch.equal(value("block 7"), value("block 7"))
    for instruction in (None, encode_instructions(["block 7"], 9)):
        with pytest.raises(ValueError, match="instruction: expected shape"):
            model(**inputs, instruction=instruction)
    deaf = SyVLAValueModel(SyVLAValueConfig.tiny(embodiments=ROBOTS))
    with pytest.raises(ValueError, match=r"instruction_bytes is 0\), got \(1, 8\)"):
        deaf(**inputs, instruction=encode_instructions(["block 7"], 8))


def test_instructions_are_their_bytes():
    encoded = encode_instructions(["ab", "", "caf\u00e9"], 6)
    assert encoded.tolist() == [[97, 98, *[256] * 4], [256] * 6, [99, 97, 102, 0xC3, 0xA9, 256]]
    assert encode_instructions(["abcdefgh"], 4).tolist() == [list(b"abgh")], "beginning and end of a longer one"


def test_loss_is_the_mean_squared_error_and_trains_every_weight(model, batch):
    returns = torch.tensor([0.0, 1.0, 0.5])
    output = model.train()(**batch, returns=returns)
    torch.testing.assert_close(output.loss, ((output.value - returns) ** 2).mean())
    model(**{k: v[:1] for k, v in batch.items() if k in INPUTS}, returns=returns[:1]).loss.backward()
    assert all(p.grad is not None for p in model.parameters()), "the other robot's encoder as well, for DDP"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first = None
    for _ in range(30):
        loss = model(**batch, returns=returns).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first or loss.item()
    assert loss.item() < 0.1 * first


INPUTS = ("expert_pixel_values", "expert_view_mask", "state", "embodiment_ids")


def test_gradient_checkpointing_changes_nothing(model, batch):
    def gradients():
        model.zero_grad()
        model(**batch, returns=torch.ones(3)).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    plain = gradients()
    model.gradient_checkpointing_enable()
    model.train()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_round_trip_through_the_auto_classes(model, batch, tmp_path, shard):
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard != "5GB")
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is SyVLAValueConfig
    assert config.embodiments["arm"] == {"id": 1, "state_dim": 3, "action_dim": 2}
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is SyVLAValueModel
    theirs = loaded.state_dict()
    assert theirs.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).value, model(**batch).value, atol=1e-5, rtol=0)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    for target in auto_map.values():
        assert (tmp_path / f"{target.split('.')[0]}.py").is_file()


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(model, tmp_path):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("value_head.2.weight")
    tensors["extra"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing from the checkpoint: value_head\.2\.weight; .* unknown .*: extra"):
        AutoModel.from_pretrained(tmp_path)


def test_a_policy_is_not_loaded_as_a_value_model(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError):
        SyVLAValueModel.from_pretrained(tmp_path)


def test_a_further_robot_leaves_all_other_values_alone(model, batch):
    with torch.no_grad():
        before = model(**batch).value
        model.add_embodiment("wide", 20, 30)
        model.add_embodiment("arm", 3, 2)
        assert torch.equal(model(**batch).value, before)
    assert set(model.state_encoders) == {"tabletop", "arm", "wide"}
    with pytest.raises(ValueError, match="already registered"):
        model.add_embodiment("arm", 4, 2)


def test_it_takes_the_robots_of_a_policy():
    policy = SyVLAConfig.tiny(embodiments=ROBOTS)
    assert SyVLAValueConfig.tiny(embodiments=policy.embodiments).embodiments == policy.embodiments
    assert policy.expert_image_size == SyVLAValueConfig.tiny().image_size


def test_bad_input_is_named(model, batch):
    for changes, message in (
        ({"expert_pixel_values": batch["expert_pixel_values"][:, :2]}, "expected 3 views"),
        ({"state": batch["state"][:2]}, "state: expected one row for each of the 3 samples, got 2"),
        ({"state": batch["state"][:, :5]}, "embodiment 'tabletop': expected at least 14 dimensions"),
        ({"embodiment_ids": torch.tensor([0, 1, 7])}, r"embodiment_ids: \[0, 1, 7\] are not all among"),
        ({"embodiment_ids": None}, "embodiment_ids: missing"),
        ({"returns": torch.zeros(3, 1)}, r"returns: expected shape \(3,\), got \(3, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**{**batch, **changes})


def test_the_policys_checkpoint_does_not_carry_the_value_models_code(tmp_path):
    SyVLAModel(SyVLAConfig.tiny()).save_pretrained(tmp_path)
    assert not (tmp_path / "modeling_value.py").exists()
