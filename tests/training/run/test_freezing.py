"""Freeze presets, and what `syvla-finetune` leaves bit-identical under each."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from syvla.modeling_syvla.resizing import resize_chunk
from syvla.training.run.freezing import FREEZE_PRESETS, freeze, trainable_parameters

FROZEN = {
    "none": (),
    "vlm": ("vlm.",),
    "vision": ("vlm.model.visual.", "expert.vision_tower."),
    "vlm_and_vision": ("vlm.", "expert.vision_tower."),
}
NEW_PARTS = ("action_queries.", "adapter.", "expert.embodiments.")


def is_frozen(name, preset):
    if preset == "all_but_embodiments":
        return not name.startswith(NEW_PARTS)
    return name.startswith(FROZEN[preset])


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


@pytest.mark.parametrize("preset", FREEZE_PRESETS)
def test_frozen_weights_get_no_gradient_and_no_optimizer_state(tiny_model, tiny_processor, make_item, preset, tmp_path):
    from syvla.training import SyVLATrainer, SyVLATrainingArguments

    freeze(tiny_model, preset)
    args = SyVLATrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no", per_device_train_batch_size=2
    )
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    data = [make_item(0), make_item(1, "arm")]
    trainer = SyVLATrainer(tiny_model, args, processing_class=tiny_processor, train_dataset=data)
    trainer.train()
    names = {id(p): name for name, p in tiny_model.named_parameters()}
    optimized = {names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == {name for name in before if not is_frozen(name, preset)}
    assert {id(p) for p in trainer.optimizer.state} <= {id(p) for p in tiny_model.parameters() if p.requires_grad}
    for name, parameter in tiny_model.named_parameters():
        if is_frozen(name, preset):
            assert parameter.grad is None, name
            assert torch.equal(parameter, before[name]), name


def test_presets_can_be_changed_and_unknown_ones_are_refused(tiny_model):
    freeze(tiny_model, "all_but_embodiments")
    few, total = trainable_parameters(tiny_model)
    freeze(tiny_model)
    assert trainable_parameters(tiny_model) == (total, total)
    assert few < total
    with pytest.raises(ValueError, match="freeze: expected one of none, vlm"):
        freeze(tiny_model, "vlms")


def test_frozen_vlm_stays_bit_identical(base_checkpoint, finetune, tmp_path):
    assert finetune(tmp_path, freeze="vlm") == 0
    before, after = weights(base_checkpoint), weights(tmp_path)
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("vlm."))
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("expert.layers."))


@pytest.fixture(scope="module")
def two_robots(base_checkpoint, tmp_path_factory):
    """The base checkpoint with one robot, which the runs below have no data of."""
    model, processor = AutoModel.from_pretrained(base_checkpoint), AutoProcessor.from_pretrained(base_checkpoint)
    model.add_embodiment("old_robot", 3, 2)
    processor.set_embodiment(
        "old_robot",
        {"state": {"mean": [0.0] * 3, "std": [1.0] * 3}, "action": {"mean": [0.0] * 2, "std": [1.0] * 2}},
    )
    folder = tmp_path_factory.mktemp("two_robots")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_new_robot_is_learned_beside_bit_identical_old_weights(two_robots, finetune, tmp_path):
    """Weight decay is on: it must not touch the coders of the robot without data either."""
    assert finetune(tmp_path, model=two_robots, freeze="all_but_embodiments", weight_decay=0.1) == 0
    before, after = weights(two_robots), weights(tmp_path)
    new = {k for k in after if k not in before}
    assert new == {k for k in after if k.startswith("expert.embodiments.two_arms.")}
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed
    assert all(k.startswith(("action_queries.", "adapter.")) for k in changed)
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert processor.disagreements(model.config) == []
    assert set(processor.embodiments) == {"old_robot", "two_arms"}
    assert processor.embodiments["old_robot"] == AutoProcessor.from_pretrained(two_robots).embodiments["old_robot"]


@pytest.mark.parametrize("chunk_size", [5, 12])
def test_another_chunk_size_changes_the_position_embedding_alone(base_checkpoint, finetune, tmp_path, chunk_size):
    assert finetune(tmp_path, chunk_size=chunk_size, freeze="all_but_embodiments") == 0
    before, after = weights(base_checkpoint), weights(tmp_path)
    key = "expert.action_position_embedding.weight"
    rows = min(8, chunk_size)
    assert after[key].shape[0] == chunk_size
    assert torch.equal(after[key][:rows], before[key][:rows])
    assert torch.equal(after[key][rows:], before[key][-1:].expand(chunk_size - rows, -1))
    frozen = [k for k in before if k != key and not k.startswith(NEW_PARTS)]
    assert all(torch.equal(before[k], after[k]) for k in frozen)
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert (model.config.chunk_size, processor.chunk_size) == (chunk_size, chunk_size)
    item = {"images": {"center": torch.zeros(32, 32, 3, dtype=torch.uint8)}, "text": "lift", "state": [0.0] * 14}
    assert model.predict_actions(**processor(**item)).actions.shape == (1, chunk_size, 14)


def test_the_first_steps_of_a_longer_chunk_start_near_the_old_ones(tiny_model):
    """Rows of the embedding are kept, so is whether it is trained; a step back restores the model exactly."""
    before = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    tiny_model.expert.action_position_embedding.requires_grad_(False)
    resize_chunk(tiny_model, 20)
    assert not tiny_model.expert.action_position_embedding.weight.requires_grad
    assert tiny_model.config.chunk_size == tiny_model.expert.config.chunk_size == 20
    resize_chunk(tiny_model, 8)
    assert all(torch.equal(v, before[k]) for k, v in tiny_model.state_dict().items())


@pytest.mark.parametrize("chunk_size", [0, -1, 2.5, True])
def test_a_chunk_size_must_be_a_positive_integer(tiny_model, chunk_size):
    with pytest.raises(ValueError, match="chunk_size: expected a positive integer"):
        resize_chunk(tiny_model, chunk_size)
