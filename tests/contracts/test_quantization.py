"""Quantized loading by every backend that is installed and runs on this CPU; where one is missing its test skips."""

from importlib.util import find_spec

import pytest
import torch
from contract_subjects import POLICY, TEXT, VALUE
from torch import nn
from transformers import BitsAndBytesConfig, QuantoConfig

# Narrower than a block of 64 weights, which bitsandbytes cannot pack on a CPU; and small parts that are best left exact.
NARROW = ["vlm.lm_head", "vlm.model.visual", "expert", "adapter", "action_queries"]
BACKENDS = {
    "bitsandbytes_8bit": ("bitsandbytes", "Linear8bitLt", lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "bitsandbytes_4bit": (
        "bitsandbytes",
        "Linear4bit",
        lambda: BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=NARROW
        ),
    ),
    "quanto_int8": ("optimum.quanto", "QLinear", lambda: QuantoConfig(weights="int8")),
    "torchao_int8": ("torchao", "Int8Tensor", lambda: torchao_config("Int8WeightOnlyConfig")),
    "torchao_int8_dynamic": (
        "torchao",
        "Int8Tensor",
        lambda: torchao_config("Int8DynamicActivationInt8WeightConfig"),
    ),
}


def torchao_config(name):
    from torchao import quantization
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(quantization, name)())


def installed(module):
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.applies(lambda subject: subject.ours)
def test_a_quantized_model_computes_nearly_the_same(subject, backend, tmp_path):
    module, layer, config = BACKENDS[backend]
    if not installed(module):
        pytest.skip(f"{module} is not installed: pip install bitsandbytes optimum-quanto torchao")
    if backend == "bitsandbytes_4bit" and subject is VALUE:
        pytest.skip("the tiny value model has layers of 14 and 64 inputs, and bitsandbytes packs blocks of 64 on a CPU")
    model, batch = subject.model(), subject.batch()
    model.save_pretrained(tmp_path)
    expected = subject.signal(model(**batch))
    quantized = type(model).from_pretrained(tmp_path, quantization_config=config(), device_map="cpu").eval()
    kinds = {type(part).__name__ for part in quantized.modules()}
    kinds |= {type(weight.data).__name__ for weight in quantized.parameters()}
    assert layer in kinds
    error = (subject.signal(quantized(**batch)) - expected).norm() / expected.norm()
    assert 0 < error < (0.6 if "4bit" in backend else 0.1)


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.applies(lambda subject: subject.ours)
def test_a_saved_quantized_model_comes_back(subject, backend, tmp_path):
    module, layer, config = BACKENDS[backend]
    if not installed(module):
        pytest.skip(f"{module} is not installed: pip install bitsandbytes optimum-quanto torchao")
    if backend == "bitsandbytes_4bit" and subject is VALUE:
        pytest.skip("the tiny value model has layers of 14 and 64 inputs, and bitsandbytes packs blocks of 64 on a CPU")
    model = subject.model()
    model.save_pretrained(tmp_path / "whole")
    quantized = type(model).from_pretrained(tmp_path / "whole", quantization_config=config(), device_map="cpu").eval()
    if module == "optimum.quanto":
        with pytest.raises(ValueError, match="quanto and is not serializable"):  # transformers says so for every model
            quantized.save_pretrained(tmp_path / "quantized")
        return
    # Before the first forward, at which bitsandbytes packs 4-bit weights for the CPU, with less exact scales.
    quantized.save_pretrained(tmp_path / "quantized")
    loaded = type(model).from_pretrained(tmp_path / "quantized", device_map="cpu").eval()
    kinds = {type(part).__name__ for part in loaded.modules()}
    assert layer in kinds | {type(weight.data).__name__ for weight in loaded.parameters()}
    batch = subject.batch()
    assert torch.equal(subject.signal(loaded(**batch)), subject.signal(quantized(**batch)))


@torch.no_grad()
@pytest.mark.applies(lambda subject: subject in (TEXT, POLICY, VALUE))
def test_linear_layers_see_three_dimensions_at_most(subject):
    """8-bit layers of bitsandbytes take no more."""
    model, batch = subject.model(), subject.batch()
    deeper = []

    def look(part, args):
        if args[0].ndim > 3:
            deeper.append(part)

    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_pre_hook(look)
    model(**batch)
    if subject is POLICY:
        model.predict_actions(**{k: v for k, v in batch.items() if k not in ("labels", "actions", "timestep")})
    assert not deeper
