"""Fused projections: the same results and checkpoints, no second copy, and plain layers again once the weights move."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from syvla.modeling_syvla import SyVLAModel
from syvla.modeling_syvla.inference_linear import FusedProjections


@pytest.fixture
def act(tiny_model, tiny_processor, make_item):
    inputs = tiny_processor.collate([make_item(1, actions=None), make_item(2, actions=None)], padding_side="left")
    noise = torch.randn(2, 8, 14, generator=torch.Generator().manual_seed(0))
    return lambda model=tiny_model: model.predict_actions(**inputs, noise=noise, num_steps=3).actions


def fusions(model) -> list[FusedProjections]:
    parts = (part for layer in model.expert.layers for part in (layer.self_attn, layer.cross_attn, layer.mlp))
    return [part.fused for part in parts]


def products(model, monkeypatch, run) -> int:
    """How many fused products `run` takes."""
    taken = []
    original = FusedProjections.__call__
    monkeypatch.setattr(FusedProjections, "__call__", lambda self, x: taken.append(self) or original(self, x))
    run()
    monkeypatch.undo()
    return len(taken)


def test_fused_projections_give_the_same_actions(tiny_model, act, monkeypatch):
    before = act()
    tiny_model.optimize_for_inference(onednn=False)
    torch.testing.assert_close(act(), before, atol=1e-5, rtol=0)
    # Self-attention and MLP of three layers in three steps, for the prefix of two; the condition's keys and values once.
    assert products(tiny_model, monkeypatch, act) == 3 * 3 * 2 + 2 * 2 + 3


def test_parameters_are_views_of_one_tensor(tiny_model):
    tiny_model.optimize_for_inference()
    for layer in tiny_model.expert.layers:
        attention, mlp = layer.self_attn, layer.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        assert {p.weight.untyped_storage().data_ptr() for p in parts} == {
            attention.fused.weight.untyped_storage().data_ptr()
        }
        assert mlp.gate_proj.weight.data_ptr() == mlp.fused.weight.data_ptr()
        assert attention.fused.weight.nbytes == sum(p.weight.nbytes for p in parts)


def test_a_checkpoint_saved_after_fusing_is_the_plain_one_bit_for_bit(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "plain")
    tiny_model.optimize_for_inference().save_pretrained(tmp_path / "fused")
    plain, fused = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "fused"))
    assert plain.keys() == fused.keys()
    assert all(torch.equal(plain[name], fused[name]) for name in plain)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("plain", "fused")]
    assert sizes[0] == sizes[1]
    again = SyVLAModel.from_pretrained(tmp_path / "fused").state_dict()
    assert all(torch.equal(again[name], value) for name, value in tiny_model.state_dict().items())


def test_training_after_fusing_reaches_the_same_weights(make_model, tiny_processor, make_item):
    batch = tiny_processor.collate([make_item(1), make_item(2)])
    drawn = {"noise": torch.randn(2, 8, 14), "timestep": torch.tensor([0.3, 0.8])}
    models = make_model(), make_model().optimize_for_inference()
    for model in models:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            model(**batch, **drawn).loss.backward()
            optimizer.step()
    for (name, plain), fused in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(plain, fused), name
    assert all(f.intact() for f in fusions(models[1])), "the optimizer writes into the views"


@pytest.mark.parametrize("change", ["dtype", "assign", "copy", "adapter"])
def test_fused_products_end_when_the_weights_are_elsewhere(tiny_model, act, monkeypatch, change):
    tiny_model.optimize_for_inference(onednn=False)
    model = tiny_model
    if change == "dtype":
        model.to(torch.float64).to(torch.float32)
    elif change == "assign":
        model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()}, assign=True)
    elif change == "copy":
        model = copy.deepcopy(model)
        for fused in fusions(tiny_model):
            fused.weight.zero_()
    else:

        class Doubled(torch.nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.layer, self.weight, self.bias = layer, layer.weight, None

            def forward(self, x):
                return 2 * self.layer(x)

        for layer in model.expert.layers:
            layer.self_attn.k_proj = Doubled(layer.self_attn.k_proj)
            layer.cross_attn.k_proj = Doubled(layer.cross_attn.k_proj)
            layer.mlp.up_proj = Doubled(layer.mlp.up_proj)
    actions = act(model)
    assert products(model, monkeypatch, lambda: act(model)) == 0
    for layer in model.expert.layers:
        layer.self_attn.fused = layer.cross_attn.fused = layer.mlp.fused = None
    assert torch.equal(act(model), actions)


def test_what_cannot_be_fused_is_left_out_with_a_warning_or_refused(tiny_model, caplog):
    layer = tiny_model.expert.layers[1].self_attn
    layer.k_proj = torch.nn.Sequential(layer.k_proj)
    tiny_model.optimize_for_inference()
    assert "without fuse" in caplog.text
    assert "Sequential is no plain linear layer" in caplog.text
    with pytest.raises(ValueError, match="Sequential is no plain linear layer"):
        tiny_model.optimize_for_inference(strict=True)


def test_projections_of_unequal_kind_are_named():
    pair = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 2, bias=False), "b": torch.nn.Linear(4, 3)})
    with pytest.raises(ValueError, match=r"a, b: cannot be fused: a layer has a bias"):
        FusedProjections(_named(pair), "a", "b")
    pair["b"] = torch.nn.Linear(4, 3, bias=False, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="dtype, device or input width differ"):
        FusedProjections(_named(pair), "a", "b")
    pair["b"] = torch.nn.Linear(4, 3, bias=False, device="meta")
    with pytest.raises(ValueError, match="kept elsewhere"):
        FusedProjections(_named(pair), "a", "b")


def _named(layers):
    module = torch.nn.Module()
    module.a, module.b = layers["a"], layers["b"]
    return module
