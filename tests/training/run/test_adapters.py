"""LoRA and DoRA: what is trained, saved, loaded and merged."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from packaging import version
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from syvla.training.run.adapters import add_adapter, base_model, load_adapter, main, target_modules

peft = pytest.importorskip("peft")


def prepared(base_checkpoint, robot_dataset_path):
    """Base model and processor that know the recorded robot."""
    from syvla.processing import RobotDataset

    model, processor = AutoModel.from_pretrained(base_checkpoint), AutoProcessor.from_pretrained(base_checkpoint)
    dataset = RobotDataset(robot_dataset_path, embodiment="two_arms", chunk_size=8)
    processor.set_embodiment("two_arms", dataset.statistics())
    model.add_embodiment("two_arms", 14, 14)
    return model, processor


def act(model, processor, robot_batch):
    batch = robot_batch(processor)
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "actions", "action_mask")}
    return model.eval().predict_actions(**inputs, generator=torch.Generator().manual_seed(0)).actions


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("scope", ["vlm", "expert", "both"])
def test_only_the_scope_and_the_named_modules_are_trained(tiny_model, kind, scope):
    adapted = add_adapter(tiny_model, kind, scope, rank=4, embodiments=["tabletop"])
    trained = {name.removeprefix("base_model.model.") for name, p in adapted.named_parameters() if p.requires_grad}
    low_rank = {name for name in trained if "lora_" in name}
    layers = ("vlm.model.language_model.layers.",) if scope != "expert" else ()
    layers += ("expert.layers.",) if scope != "vlm" else ()
    assert all(name.startswith(layers) for name in low_rank)
    assert {name.split(".layers.")[0] + ".layers." for name in low_rank} == set(layers)
    full = {name.split(".modules_to_save")[0] for name in trained - low_rank}
    coders = {f"expert.embodiments.tabletop.{part}.{i}" for part in PARTS for i in (0, 2)}
    assert full == {"action_queries", "adapter.0", "adapter.2"} | coders
    assert any("magnitude" in name for name in trained) == (kind == "dora")


PARTS = ("state_encoder", "action_encoder", "action_decoder")


def test_every_projection_of_the_language_model_and_the_expert_is_a_target(tiny_model):
    adapted = add_adapter(tiny_model)
    targets = {name.rsplit(".", 1)[-1] for name in adapted.targeted_module_names}
    assert targets == {f"{p}_proj" for p in ("q", "k", "v", "o", "gate", "up", "down")}
    text = tiny_model.config.get_text_config().num_hidden_layers * 7
    expert = tiny_model.config.expert_config.num_hidden_layers * 11  # self-attention, cross-attention, MLP
    assert len(adapted.targeted_module_names) == text + expert


def test_a_fresh_adapter_changes_nothing(base_checkpoint, robot_dataset_path, robot_batch):
    model, processor = prepared(base_checkpoint, robot_dataset_path)
    before = act(model, processor, robot_batch)
    assert torch.equal(before, act(add_adapter(model), processor, robot_batch))


def test_intention_decoupling_works_under_an_adapter(base_checkpoint, robot_dataset_path, robot_batch):
    model, processor = prepared(base_checkpoint, robot_dataset_path)
    adapted = add_adapter(model, "dora").train()
    batch = robot_batch(processor)
    torch.manual_seed(0)
    output = adapted(**batch)
    assert (~output.query_mask).sum(-1).tolist() == [1] * 4  # 5% of 8 queries: the smallest of each sample
    output.loss.backward()
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)
    low_rank = [p for name, p in adapted.named_parameters() if "lora_B" in name and p.grad is not None]
    assert any(p.grad.abs().sum() > 0 for p in low_rank)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_train_save_load_merge(base_checkpoint, finetune, robot_batch, tmp_path, kind, capsys):
    folder, merged = tmp_path / "adapter", tmp_path / "merged"
    assert finetune(folder, adapter=kind, adapter_rank=4, max_steps=4) == 0
    assert not (folder / "model.safetensors").exists()
    assert not (folder / "config.json").exists()
    before = load_file(Path(base_checkpoint) / "model.safetensors")
    adapted, processor = load_adapter(folder)
    inside = base_model(adapted).state_dict()
    own = {k.replace(".base_layer", "").replace(".original_module", ""): v for k, v in inside.items()}
    assert all(torch.equal(before[k], own[k]) for k in before), "the base weights stay bit-identical"
    assert not any(p.requires_grad for p in adapted.parameters())
    assert base_model(adapted).config.embodiments["two_arms"]["action_dim"] == 14
    expected = act(adapted, processor, robot_batch)
    again, _ = load_adapter(folder, base_checkpoint)
    assert torch.equal(act(again, processor, robot_batch), expected)
    with adapted.disable_adapter():
        assert (act(adapted, processor, robot_batch) - expected).abs().max() > 1e-3, "training did something"

    capsys.readouterr()
    assert main(["merge", str(base_checkpoint), str(folder), str(merged)]) == 0
    assert json.loads(capsys.readouterr().out) == {"checkpoint": str(merged)}
    model = AutoModel.from_pretrained(merged)
    assert type(model).__name__ == "SyVLAModel"
    torch.testing.assert_close(
        act(model, AutoProcessor.from_pretrained(merged), robot_batch), expected, atol=1e-5, rtol=1e-5
    )
    assert "library_name: transformers" in (merged / "README.md").read_text()


def test_a_resumed_adapter_run_gives_the_losses_of_an_unbroken_one(finetune, tmp_path):
    options = {"adapter": "lora", "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    options |= {"gradient_accumulation_steps": 2}
    assert finetune(tmp_path / "whole", **options) == 0
    resume = tmp_path / "whole" / "checkpoint-2"
    assert finetune(tmp_path / "resumed", **options, resume_from_checkpoint=resume) == 0
    whole, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    losses = [json.loads((tmp_path / name / "log_history.json").read_text()) for name in ("whole", "resumed")]
    assert [e.get("loss") for e in losses[0]][:4] == [e.get("loss") for e in losses[1]][:4]


def test_gradient_checkpointing_trains_the_same_adapter(finetune, tmp_path):
    """Though no weight before the adapter's layers asks for gradients."""
    saved = []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        options = {"adapter": "lora", "adapter_scope": "vlm", "gradient_checkpointing": checkpointing}
        assert finetune(folder, **options, adapter_trained_modules="none", max_steps=2) == 0
        saved.append(load_file(folder / "adapter_model.safetensors"))
    plain, checkpointed = saved
    assert all("lora_" in key and "vlm.model.language_model" in key for key in plain)
    assert all(value.any() for key, value in plain.items() if "lora_B" in key), "these start at zero"
    for key, value in plain.items():
        torch.testing.assert_close(checkpointed[key], value, atol=1e-5, rtol=1e-4, msg=key)


def test_the_loaders_of_transformers_and_peft_read_an_adapter(
    base_checkpoint, robot_dataset_path, robot_batch, tmp_path
):
    """Where the base knows the robot already; `load_adapter` adds what the base lacks."""
    model, processor = prepared(base_checkpoint, robot_dataset_path)
    base, folder = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    adapted = add_adapter(AutoModel.from_pretrained(base), "lora", rank=4)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    adapted.save_pretrained(folder)
    expected = act(adapted, processor, robot_batch)
    through_peft = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(folder))
    assert torch.equal(act(through_peft, processor, robot_batch), expected)
    if version.parse(transformers.__version__) >= version.parse("5.23"):  # 5.4 loads the base and a fresh adapter
        assert torch.equal(act(AutoModel.from_pretrained(folder), processor, robot_batch), expected)


def test_a_longer_chunk_travels_with_the_adapter(finetune, robot_batch, tmp_path):
    assert finetune(tmp_path, adapter="lora", adapter_scope="expert", chunk_size=10, max_steps=2) == 0
    adapted, processor = load_adapter(tmp_path)
    assert act(adapted, processor, robot_batch).shape == (4, 10, 14)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved["base_model.model.expert.action_position_embedding.weight"].shape[0] == 10


def test_an_adapter_of_another_model_is_refused(finetune, make_model, tmp_path):
    assert finetune(tmp_path, adapter="lora", max_steps=1) == 0
    deeper = make_model(expert={"num_hidden_layers": 4}, embodiments={})
    with pytest.raises(ValueError, match="missing from the adapter"):
        load_adapter(tmp_path, deeper)
    other = make_model()
    with pytest.raises(ValueError, match=r"embodiments.two_arms: the adapter was trained with id 0, this base gives 2"):
        load_adapter(tmp_path, other)


def test_bad_input_is_one_clear_error(finetune, tiny_model, tmp_path, capsys):
    assert finetune(tmp_path, adapter="lora", freeze="vlm") == 1
    assert "freeze: 'vlm' has no meaning with adapter='lora'" in capsys.readouterr().err
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert finetune(tmp_path / "out", model=tmp_path / "adapter") == 1
    assert "holds an adapter; merge it into its base first" in capsys.readouterr().err
    with pytest.raises(ValueError, match="adapter_scope: expected one of vlm, expert, both"):
        target_modules("head")
    with pytest.raises(ValueError, match="adapter: expected one of lora, dora"):
        add_adapter(tiny_model, "ia3")
    with pytest.raises(ValueError, match="adapter_rank: expected a positive integer"):
        add_adapter(tiny_model, rank=0)
    with pytest.raises(ValueError, match="the model has no module 'head'"):
        add_adapter(tiny_model, trained_modules=["head"])
    assert main(["merge", str(tmp_path), str(tmp_path / "none"), str(tmp_path / "out")]) == 1
