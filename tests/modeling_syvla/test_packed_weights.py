"""Packed weights: the same results and the same checkpoints; whatever they cannot do is refused by name."""

import copy
import weakref

import pytest
import torch
from torch import nn

from syvla.modeling_syvla import SyVLAModel, packed_weights
from syvla.modeling_syvla.packed_weights import PackedLinear, pack_weights, why_not_packed

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.SiLU(), nn.Linear(40, 8, bias=False)).eval()


@pytest.fixture
def inputs(tiny_processor, make_item):
    item = make_item()
    return tiny_processor(images=item["images"], text=item["text"], state=item["state"], embodiment="tabletop")


def act(model, inputs, **options):
    noise = torch.randn(
        1, model.config.chunk_size, model.config.max_action_dim, generator=torch.Generator().manual_seed(1)
    )
    return model.predict_actions(**inputs, noise=noise, num_steps=3, **options).actions


@pytest.mark.parametrize("shape", [(24,), (1, 24), (51, 24), (2, 7, 24), (0, 24)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_same_result(layers, shape, dtype, tolerance):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor does not compute in bfloat16")
    x = torch.randn(shape, dtype=dtype)
    layers.to(dtype)
    with torch.no_grad():
        expected = layers(x)
        assert pack_weights(layers) == 2
        got = layers(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_zeros_up_to_a_quicker_width_are_seen_by_nobody(bias):
    layers = nn.Sequential(nn.Linear(24, 380, bias=bias), nn.Linear(380, 5, bias=False))
    weight, x = layers[0].weight.detach().clone(), torch.randn(2, 7, 24)
    with torch.no_grad():
        expected = layers(x)
        pack_weights(layers)
        assert layers[0](x).shape == (2, 7, 380)
        torch.testing.assert_close(copy.deepcopy(layers)(x), expected, atol=1e-5, rtol=0)
    state = layers.state_dict()
    assert torch.equal(state["0.weight"], weight)
    assert state["0.weight"].untyped_storage().nbytes() == weight.nbytes


def test_a_whole_model_acts_and_thinks_the_same(tiny_model, tiny_processor, inputs):
    plain = copy.deepcopy(tiny_model).optimize_for_inference(onednn=False, fuse=False)
    tiny_model.optimize_for_inference(pack_weights=True, strict=True)
    packed = [module for module in tiny_model.modules() if isinstance(module, PackedLinear)]
    assert len(packed) > 30
    assert not any(type(module) is nn.Linear for module in tiny_model.expert.layers.modules())
    torch.testing.assert_close(act(tiny_model, inputs), act(plain, inputs), atol=1e-4, rtol=0)
    limits = {"think": True, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    for model in (tiny_model, plain):
        model.tokenizer = tiny_processor.tokenizer
    torch.testing.assert_close(act(tiny_model, inputs, **limits), act(plain, inputs, **limits), atol=1e-4, rtol=0)


def test_fused_projections_give_way(tiny_model, inputs):
    tiny_model.optimize_for_inference()
    before = act(tiny_model, inputs)
    tiny_model.optimize_for_inference(pack_weights=True, strict=True)
    assert all(layer.self_attn.fused is None and layer.mlp.fused is None for layer in tiny_model.expert.layers)
    torch.testing.assert_close(act(tiny_model, inputs), before, atol=1e-4, rtol=0)
    tiny_model.optimize_for_inference(strict=True)  # again, without: nothing to fuse, nothing said


def test_checkpoints_are_plain_bit_by_bit(tiny_model, tmp_path):
    expected = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    tiny_model.optimize_for_inference(pack_weights=True)
    state = tiny_model.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    tiny_model.save_pretrained(tmp_path)
    loaded = SyVLAModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_a_copy_is_packed_and_stands_alone(layers):
    pack_weights(layers)
    again = copy.deepcopy(layers)
    with torch.no_grad():
        again[0].bias.zero_()
        assert layers[0].bias.abs().sum() > 0
        layers[0].bias.zero_()
        x = torch.randn(3, 24)
        assert torch.equal(layers(x), again(x))


def test_what_needs_plain_weights_is_refused(layers):
    pack_weights(layers)
    with pytest.raises(RuntimeError, match=r"cannot be trained: its weights are packed .* load the model again"):
        layers.train()
    layers.eval()
    with pytest.raises(RuntimeError, match=r"cannot go to torch.bfloat16 on cpu"):
        layers.bfloat16()
    layers.to("cpu")
    with pytest.raises(RuntimeError, match=r"0\.weight: cannot be loaded"):
        layers.load_state_dict(layers.state_dict())
    layers.load_state_dict({"0.bias": torch.ones(40)}, strict=False)
    assert layers[0].bias.sum() == 40
    with pytest.raises(RuntimeError, match="no gradient passes"):
        layers(torch.randn(2, 24, requires_grad=True))
    with pytest.raises(RuntimeError, match=r"expected torch\.float32 as the weights, got torch\.float64"):
        layers(torch.randn(2, 24, dtype=torch.float64))
    with pytest.raises(AttributeError, match="none in the plain layout"):
        _ = layers[0].weight


def test_tied_and_foreign_layers_stay():
    class Own(nn.Linear):
        pass

    embedding, head = nn.Embedding(10, 24), nn.Linear(24, 10, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleList([embedding, head, Own(8, 8), nn.Linear(8, 8, dtype=torch.float64), nn.Linear(8, 8)])
    assert pack_weights(model) == 1
    assert [type(layer) for layer in model] == [nn.Embedding, nn.Linear, Own, nn.Linear, PackedLinear]
    assert model[1].weight is embedding.weight


def test_what_cannot_be_packed_is_left_out_or_refused(tiny_model, caplog):
    with torch.device("meta"):
        assert why_not_packed(nn.Linear(4, 4)) == "not all weights are on the CPU"
    tiny_model.expert.layers[0].mlp.base_layer = nn.Identity()
    with pytest.raises(ValueError, match="pack_weights is not possible here: the model has adapters; merge them first"):
        tiny_model.optimize_for_inference(pack_weights=True, strict=True)
    tiny_model.optimize_for_inference(pack_weights=True)
    assert "without pack_weights" in caplog.text
    assert tiny_model.expert.layers[0].self_attn.fused is not None  # the rest is done all the same


def test_packed_weights_are_not_compiled(tiny_model, caplog):
    tiny_model.optimize_for_inference(pack_weights=True)
    tiny_model.optimize_for_inference(compile=True)
    assert "without compile: it takes plain weights only" in caplog.text
    assert tiny_model.compiled_denoising is None


def test_no_second_copy_of_the_weights_exists():
    layers = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(3)))
    weights = [weakref.ref(layer.weight) for layer in layers]
    alive = []

    class Watched(PackedLinear):
        def __init__(self, layer):
            alive.append(sum(weight() is not None for weight in weights))
            super().__init__(layer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_weights, "PackedLinear", Watched)
        assert pack_weights(layers) == 3
    assert alive == [3, 2, 1]


def test_a_refusal_leaves_the_whole_model_as_it_was(tiny_model, inputs):
    tiny_model.optimize_for_inference(pack_weights=True)
    before = act(tiny_model, inputs)
    for change in (tiny_model.train, tiny_model.bfloat16):
        with pytest.raises(RuntimeError, match="packed for inference"):
            change()
    assert not any(module.training for module in tiny_model.modules())
    assert torch.equal(act(tiny_model, inputs), before)


def test_a_further_robot_and_autocast(tiny_model, inputs):
    tiny_model.optimize_for_inference(pack_weights=True)
    tiny_model.add_embodiment("new", 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert act(tiny_model, inputs).isfinite().all()


def test_other_dtypes_are_refused_when_asked_for(tiny_model):
    with pytest.raises(
        ValueError, match=r"expected weights in torch.float32 or torch.bfloat16, got \['torch.float16'\]"
    ):
        tiny_model.half().optimize_for_inference(pack_weights=True, strict=True)
