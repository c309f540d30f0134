"""A training step whose layers are compiled has the losses and gradients of one whose layers are not."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from syvla.training.run.compiled_layers import compile_layers


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


@pytest.fixture
def mixed(tiny_processor, unequal_items, make_chat):
    """Three robots, of which two lack views, and a chat, padded to a multiple of so many tokens."""

    def make(bucket=64, seed=3):
        items = [unequal_items[0], make_chat(5, size=(48, 32)), *unequal_items[1:]]
        generator = torch.Generator().manual_seed(seed)
        drawn = {"noise": torch.randn(4, 8, 14, generator=generator), "timestep": torch.rand(4, generator=generator)}
        return {**tiny_processor.collate(items, length_bucket=bucket), **drawn}

    return make


def step(model, batch):
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_losses_and_gradients_are_the_same(make_model, mixed, checkpointing):
    """Both passes of Intention Decoupling, LM loss, missing views; twice, since the second step finds compiled code."""
    model = make_model().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    batches = [mixed(seed=seed) for seed in (3, 4)]
    expected = [step(model, batch) for batch in batches]
    names = list(model.state_dict())
    assert compile_layers(model, "aot_eager", length_bucket=64) == 2 + 2 + 3  # VLM, its image encoder, expert
    for batch, (output, gradients) in zip(batches, expected, strict=True):
        found, others = step(model, batch)
        for name in ("loss", "action_loss", "lm_loss", "query_states"):
            torch.testing.assert_close(found[name], output[name], atol=1e-5, rtol=1e-5, msg=name)
        assert torch.equal(found.query_mask, output.query_mask)
        assert gradients.keys() == others.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, atol=1e-5, rtol=1e-5, msg=name)
    assert list(model.state_dict()) == names, "a checkpoint has the names that others know"


def test_buckets_come_again_without_compiling(make_model, mixed):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = make_model().train()
    compile_layers(model, counting, length_bucket=64)
    step(model, mixed(64))
    first = len(graphs)
    assert first
    step(model, mixed(64, seed=9))
    assert len(graphs) == first, "the same bucket"
    step(model, mixed(256))
    grown = len(graphs)
    assert grown > first, "another bucket is another shape"
    step(model, mixed(64))
    step(model, mixed(256, seed=9))
    assert len(graphs) == grown


class Products(TorchDispatchMode):
    """Shapes of all matrix products."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.shapes.append(tuple(out.shape))
        return out


def test_pass_1_still_computes_no_gradient_of_a_weight(make_model, mixed, monkeypatch):
    model = make_model().train()
    compile_layers(model, "aot_eager", length_bucket=64)
    batch = mixed()
    step(model, batch)  # compiled from here on
    products = Products()
    original = torch.autograd.grad

    def counted(*args, **kwargs):
        with products:
            return original(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    model(**batch)
    weights = {tuple(w.shape) for w in model.expert.layers.parameters() if w.ndim == 2}
    assert products.shapes
    assert not [shape for shape in products.shapes if shape in weights | {shape[::-1] for shape in weights}]


def test_what_cannot_be_compiled_is_said_before_training(tiny_model, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(
        ValueError, match=r"torch_compile: torch.compile failed: RuntimeError: no C\+\+ compiler; install"
    ):
        compile_layers(tiny_model, "inductor")


def test_a_run_has_the_same_losses_and_saves_the_same_names(finetune, tmp_path):
    """`--torch_compile` of the command; the trainer compiles nothing else."""
    logs = []
    for name, more in (("plain", {}), ("compiled", {"torch_compile": True, "torch_compile_backend": "aot_eager"})):
        assert finetune(tmp_path / name, max_steps=2, padding_free=False, length_bucket=64, **more) == 0
        history = json.loads((tmp_path / name / "log_history.json").read_text())
        logs.append([entry["loss"] for entry in history if "loss" in entry])
    assert len(logs[0]) == 2
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
    plain, compiled = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "compiled"))
    assert compiled.keys() == plain.keys()
