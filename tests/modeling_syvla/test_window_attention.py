"""Windows in one call against `transformers`' own layer, which makes a call for each."""

import copy

import pytest
import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from syvla.modeling_syvla import SyVLAConfig
from syvla.modeling_syvla.window_attention import BatchedWindowAttention, batch_windows

# Heights and widths in patches of 8 pixels; a window is 4 x 4 of them.
SIZES = {
    "equal windows": [(8, 8)] * 3,
    "one image": [(8, 8)],
    "windows cut at edges": [(10, 6), (8, 8), (14, 18)],
    "no two of one length": [(4, 4), (4, 2)],
}


def encoders(implementation, dtype=torch.float32):
    """The image encoder as `transformers` has it, and a copy that batches windows."""
    config = SyVLAConfig.tiny().vlm_config.vision_config
    config._attn_implementation = implementation
    torch.manual_seed(0)
    plain = qwen.Qwen2_5_VisionTransformerPretrainedModel(config).to(dtype)
    batched = copy.deepcopy(plain)
    batch_windows(batched)
    assert [type(block.attn) for block in batched.blocks] == [BatchedWindowAttention] * 2
    return plain, batched


def encoded(encoder, sizes):
    """Features of random images (patches / 4, 64), and the gradients of their squared sum."""
    config = encoder.config
    grid = torch.tensor([[1, *size] for size in sizes])
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(int(grid.prod(dim=1).sum()), values, generator=generator)
    encoder.zero_grad()
    features = encoder(patches.to(encoder.dtype), grid_thw=grid).pooler_output
    features.float().square().sum().backward()
    return features.detach(), [parameter.grad for parameter in encoder.parameters()]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_features_and_gradients_are_those_of_transformers(implementation, sizes):
    plain, batched = encoders(implementation)
    (expected, gradients), (features, own) = encoded(plain, sizes), encoded(batched, sizes)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own, gradients, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_too():
    plain, batched = encoders("sdpa", torch.bfloat16)
    sizes = SIZES["windows cut at edges"]
    torch.testing.assert_close(encoded(batched, sizes)[0], encoded(plain, sizes)[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("name", "calls"),
    # Layers with windows and with whole images. Of 10 x 6 patches the windows have 16, 8, 8 and 4; of 14 x 18: 16, 8 and 4.
    [("equal windows", 1 + 1), ("one image", 1 + 1), ("windows cut at edges", 3 + 3), ("no two of one length", 2 + 2)],
)
def test_one_call_for_each_length(name, calls, monkeypatch):
    seen = []
    attend = qwen.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def counting(*args, **kwargs):
        seen.append(args[1].shape)
        return attend(*args, **kwargs)

    monkeypatch.setitem(qwen.ALL_ATTENTION_FUNCTIONS, "sdpa", counting)
    encoded(encoders("sdpa")[1], SIZES[name])
    assert len(seen) == calls, seen
