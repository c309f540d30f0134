"""Counting the memory of tensors that have shapes and no numbers, against sums by hand."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from benchmarks.shape_only import FourBitLinear, LiveBytes, norms_of_cuda, shapes_of


def test_a_product_counts_from_when_it_is_made_until_it_is_dropped():
    x = torch.zeros(10, 100)  # 4000 bytes
    with LiveBytes() as live:
        live.add(x)
        assert live.now == 4000
        y = x + 1
        view = y[2:]  # shares the storage
        assert (live.now, live.peak) == (8000, 8000)
        del y
        assert live.now == 8000
        del view
        assert live.now == 4000
        assert live.peak == 8000


def test_a_step_of_two_layers_holds_what_the_sum_by_hand_says():
    """Weights (64, 64) twice, inputs (1000, 64): backward needs both inputs of the products and the ReLU's output."""

    def build():
        return nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False))

    model, fake = shapes_of(build, lambda weight: torch.float32)
    weights, activation = 2 * 64 * 64 * 4, 1000 * 64 * 4
    with LiveBytes() as live:
        live.add(list(model.parameters()))
        assert live.now == weights
        x = fake({"x": torch.zeros(1000, 64)})["x"]
        live.add(x)
        loss = model(x).sum()
        # The first product is gone once ReLU has made its own output; the last one is summed and gone.
        assert live.now == weights + 2 * activation + loss.nbytes
        loss.backward()
        assert live.now == 2 * weights + activation + loss.nbytes


def test_no_number_is_kept_and_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(1000, 8)
            self.head = nn.Linear(8, 1000, bias=False)
            self.head.weight = self.embedding.weight

    model, _ = shapes_of(Tied, lambda weight: torch.float16)
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.dtype == torch.float16
    with pytest.raises(DataDependentOutputException):
        model.head.weight.sum().item()


def test_masks_select_by_what_stands_in_them():
    model, fake = shapes_of(lambda: nn.Linear(8, 8), lambda weight: torch.float32)
    mask = torch.tensor([[True, False], [True, True]])
    with LiveBytes():
        hidden = model(fake({"x": torch.zeros(2, 2, 8)})["x"])
        assert hidden[mask].shape == (3, 8)


def test_four_bits_a_weight_and_a_scale_for_each_64():
    linear = nn.Linear(128, 64, bias=False)
    packed = FourBitLinear(linear)
    assert packed.packed.nbytes == 64 * 128 // 2
    assert packed.scales.nbytes == 64 * 128 // 64 * 4
    x = torch.zeros(3, 128, requires_grad=True)
    y = packed(x)
    assert y.shape == (3, 64)
    y.float().sum().backward()
    assert x.grad.shape == x.shape


def test_layer_norms_leave_autocast_in_float32_as_on_cuda():
    norm, x = nn.LayerNorm(8, dtype=torch.bfloat16), torch.zeros(2, 8, dtype=torch.bfloat16)
    with norms_of_cuda():
        assert norm(x).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert norm(x).dtype == torch.float32
            assert (x @ x.T).dtype == torch.bfloat16
