"""An adapter's frozen base keeps the checkpoint's dtype, or is quantized; what is trained is float32."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from syvla.modeling_syvla import SyVLAModel
from syvla.training.imitation.command import load_checkpoint
from syvla.training.run.adapters import add_adapter
from syvla.training.run.arguments import ModelArguments


@pytest.fixture(scope="module")
def half_checkpoint(base_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    AutoModel.from_pretrained(base_checkpoint).to(torch.bfloat16).save_pretrained(folder)
    AutoProcessor.from_pretrained(base_checkpoint).save_pretrained(folder)
    return folder


def test_the_frozen_base_keeps_its_dtype_and_the_trained_weights_are_float32(half_checkpoint):
    model, _ = load_checkpoint(ModelArguments(model_path=str(half_checkpoint), adapter="lora"))
    adapted = add_adapter(model, rank=4)
    dtypes = {trained: set() for trained in (True, False)}
    for parameter in adapted.parameters():
        dtypes[parameter.requires_grad].add(parameter.dtype)
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}
    whole, _ = load_checkpoint(ModelArguments(model_path=str(half_checkpoint)))
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


def test_a_run_under_autocast_trains_and_one_without_it_is_refused(half_checkpoint, finetune, tmp_path, capsys):
    options = {"model": half_checkpoint, "adapter": "lora", "max_steps": 2}
    assert finetune(tmp_path / "no", **options) == 1
    assert "bf16: the checkpoint's weights are bfloat16 and stay so under an adapter" in capsys.readouterr().err
    assert finetune(tmp_path / "out", bf16=True, **options) == 0
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert any(w.abs().max() > 0 for name, w in weights.items() if "lora_B" in name), "it moved"
    log = [e for e in json.loads((tmp_path / "out" / "log_history.json").read_text()) if "loss" in e]
    assert all(entry["grad_norm"] > 0 for entry in log)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_loads_and_trains_one_step(bits, base_checkpoint, robot_batch, robot_dataset_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    from syvla.processing import RobotDataset

    model = SyVLAModel.from_pretrained(
        base_checkpoint, quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    )
    layers = [type(m).__name__ for m in model.vlm.model.language_model.layers.modules()]
    assert any(name in ("Linear4bit", "Linear8bitLt") for name in layers)
    own = [*model.expert.modules(), *model.adapter.modules()]
    assert not any("bit" in type(m).__name__.lower() and "Linear" in type(m).__name__ for m in own)
    processor = AutoProcessor.from_pretrained(base_checkpoint)
    processor.set_embodiment("two_arms", RobotDataset(robot_dataset_path, embodiment="two_arms").statistics())
    model.add_embodiment("two_arms", 14, 14)
    adapted = add_adapter(model, rank=4).train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    batch = robot_batch(processor)
    first = adapted(**batch).loss
    first.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in adapted.parameters())
    optimizer.step()
    moved = [p for n, p in adapted.named_parameters() if "lora_B" in n]
    assert any(p.abs().max() > 0 for p in moved)
