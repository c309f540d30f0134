"""Linear layers through oneDNN: the same results, and only where nothing is learned."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from syvla.modeling_syvla.inference_linear import OneDNNLinear, linear, use_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.SiLU(), nn.Linear(40, 8, bias=False))


@pytest.mark.parametrize("shape", [(24,), (1, 24), (51, 24), (2, 7, 24), (0, 24)])
def test_same_result(layers, shape):
    x = torch.randn(shape)
    with torch.no_grad():
        expected = layers(x)
        assert use_onednn(layers) == 2
        torch.testing.assert_close(layers(x), expected, atol=1e-5, rtol=0)


def test_strided_input_and_weight():
    x, weight = torch.randn(6, 10, 24)[:, ::2], torch.randn(40, 48)[:, :24]
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight), atol=1e-5, rtol=0)


def test_gradients_are_those_of_a_plain_layer(layers):
    x = torch.randn(5, 24)
    layers(x).sum().backward()
    expected = [p.grad.clone() for p in layers.parameters()]
    use_onednn(layers)
    layers.zero_grad()
    layers(x).sum().backward()
    for parameter, gradient in zip(layers.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_lower_precision_and_autocast_stay_with_torch(layers):
    use_onednn(layers)
    x = torch.randn(5, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layers(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert layers.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_only_plain_float32_layers_change_and_change_back(layers):
    class Own(nn.Linear):
        pass

    layers.append(Own(8, 8)).append(nn.Linear(8, 8, dtype=torch.bfloat16))
    state = dict(layers.state_dict())
    assert use_onednn(layers) == 2
    assert [type(layer) for layer in layers] == [OneDNNLinear, nn.SiLU, OneDNNLinear, Own, nn.Linear]
    assert all(torch.equal(layers.state_dict()[name], value) for name, value in state.items())
    assert use_onednn(layers, False) == 2
    assert not any(type(layer) is OneDNNLinear for layer in layers)
