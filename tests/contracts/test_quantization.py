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
}


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
        pytest.skip(f"{module} is not installed: pip install bitsandbytes optimum-quanto")
    if backend == "bitsandbytes_4bit" and subject is VALUE:
        pytest.skip("the tiny value model has layers of 14 and 64 inputs, and bitsandbytes packs blocks of 64 on a CPU")
    model, batch = subject.model(), subject.batch()
    model.save_pretrained(tmp_path)
    expected = subject.signal(model(**batch))
    quantized = type(model).from_pretrained(tmp_path, quantization_config=config(), device_map="cpu").eval()
    assert layer in {type(part).__name__ for part in quantized.modules()}
    error = (subject.signal(quantized(**batch)) - expected).norm() / expected.norm()
    assert 0 < error < (0.6 if "4bit" in backend else 0.1)


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
