"""What one training step computes, counted without a clock: a saving that is lost fails here on any machine."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from syvla.modeling_syvla import intention_decoupling, unused_weights
from syvla.modeling_syvla.padding_free import set_padding_free

VISION = {"model_type": "siglip_vision_model", "vision_use_head": False, "hidden_size": 48, "intermediate_size": 80,
          "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}  # fmt: skip
LAYERS, QUERIES, STEPS, VIEWS, PATCHES = 3, 8, 8, 3, 16
PREFIX, SUFFIX = VIEWS * PATCHES + 1, 1 + STEPS
ROBOTS = 3

# Tokens of one robot sample that each projection sees. Nothing reads the prefix behind the last layer's keys and values.
OF_PREFIX = {"self k": LAYERS * PREFIX, "self v": LAYERS * PREFIX, "self q": (LAYERS - 1) * PREFIX,
             "mlp": (LAYERS - 1) * PREFIX, "cross q": 0, "cross k": 0, "cross v": 0}  # fmt: skip
OF_SUFFIX = {**dict.fromkeys(OF_PREFIX, LAYERS * SUFFIX), "cross k": LAYERS * QUERIES, "cross v": LAYERS * QUERIES}


def plus(*parts):
    return {name: ROBOTS * sum(part[name] for part in parts) for name in OF_PREFIX}


ATTENDED_PREFIX = {**OF_PREFIX, "cross q": (LAYERS - 1) * PREFIX}
EXPECTED = {  # by scope: before the passes, in pass 1, in pass 2
    "all": ({}, plus(ATTENDED_PREFIX, OF_SUFFIX), plus(ATTENDED_PREFIX, OF_SUFFIX)),
    "suffix": (plus(OF_PREFIX), plus(OF_SUFFIX), plus(OF_SUFFIX)),
}


class Products(TorchDispatchMode):
    """Shapes of all matrix products, and the softmaxes that no fused attention did."""

    def __init__(self):
        super().__init__()
        self.shapes, self.softmaxes = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.shapes.append(tuple(out.shape))
        self.softmaxes += func._overloadpacket in (torch.ops.aten._softmax, torch.ops.aten._safe_softmax)
        return out


class StepCounts:
    """Forward tokens of the expert's projections by pass, SigLIP's and the VLM's calls, during training steps."""

    def __init__(self, model):
        self.passes, self.images, self.vlm_tokens, self.patches = [Counter()], [], [], []
        self.handles = []
        self._before(model.adapter, lambda _: self.passes.append(Counter()))  # C = Adapter(H) begins a pass
        for layer in model.expert.layers:
            for name, module in (
                ("self q", layer.self_attn.q_proj),
                ("self k", layer.self_attn.k_proj),
                ("self v", layer.self_attn.v_proj),
                ("cross q", layer.cross_attn.q_proj),
                ("cross k", layer.cross_attn.k_proj),
                ("cross v", layer.cross_attn.v_proj),
                ("mlp", layer.mlp.up_proj),
            ):
                self._before(module, lambda x, name=name: self.passes[-1].update({name: x.shape[:-1].numel()}))
        self._before(model.expert.vision_tower, lambda x: self.images.append(len(x)))
        for layer in model.vlm.model.language_model.layers:
            self._before(layer, lambda x: self.vlm_tokens.append(x.shape[:2].numel()))
        self._before(model.vlm.model.visual, lambda x: self.patches.append(len(x)))

    def _before(self, module, record):
        def hook(_, args, kwargs):
            record((args or [kwargs[key] for key in ("pixel_values", "hidden_states") if key in kwargs])[0])

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    @property
    def expert(self):
        return tuple({name: n for name, n in counts.items() if n} for counts in self.passes)


@pytest.fixture
def make(make_model):
    return lambda scope="all", **more: make_model(
        expert={"cross_attention_scope": scope}, expert_vision_config=VISION, **more
    ).train()


@pytest.fixture
def batch(tiny_processor, unequal_items, make_chat):
    """Three robots, of which two lack views, and a chat."""
    return tiny_processor.collate([unequal_items[0], make_chat(5, size=(48, 32)), *unequal_items[1:]])


def without_zeros(counts):
    return tuple({name: n for name, n in part.items() if n} for part in counts)


@pytest.mark.parametrize("scope", ["all", "suffix"])
def test_the_passes_share_what_they_can(make, batch, scope):
    model = make(scope)
    counts = StepCounts(model)
    model(**batch).loss.backward()
    assert counts.expert == without_zeros(EXPECTED[scope])
    assert counts.images == [ROBOTS * VIEWS], "SigLIP runs once, on all views of all robots"
    assert counts.vlm_tokens == [batch["input_ids"].numel()] * 2, "the VLM's two layers run once"
    assert counts.patches == [len(batch["pixel_values"])], "its image encoder runs once, on all images"


def test_without_decoupling_there_is_one_pass(make, batch):
    model = make(intention_decoupling=False)
    counts = StepCounts(model)
    model(**batch).loss.backward()
    assert counts.expert == without_zeros(({}, EXPECTED["all"][2]))


@pytest.mark.parametrize("decoupling", [False, True])
def test_batches_without_robots_run_the_expert_on_one_empty_sample_where_others_wait(
    make, tiny_processor, make_chat, monkeypatch, decoupling
):
    """Once, with decoupling as well: an empty sample has no states to single out."""
    monkeypatch.setattr(unused_weights, "in_step_with_others", lambda: True)
    model = make(intention_decoupling=decoupling)
    counts = StepCounts(model)
    model(**tiny_processor.collate([make_chat(1), make_chat(2)])).loss.backward()
    assert counts.expert[1] == {name: n // ROBOTS for name, n in EXPECTED["all"][2].items()}
    assert counts.images == [VIEWS]


def test_batches_without_robots_leave_the_expert_alone_in_one_process(make, tiny_processor, make_chat):
    model = make()
    counts = StepCounts(model)
    model(**tiny_processor.collate([make_chat(1), make_chat(2)])).loss.backward()
    assert counts.images == []
    assert all(p.grad is None for p in model.expert.parameters())


@pytest.mark.parametrize("scope", ["all", "suffix"])
def test_padding_free_runs_the_vlm_on_real_tokens_alone(make, batch, scope):
    model = make(scope)
    set_padding_free(model)
    counts = StepCounts(model)
    model(**batch).loss.backward()
    real = int(batch["attention_mask"].sum())
    assert real < batch["input_ids"].numel()
    assert counts.vlm_tokens == [real] * 2
    assert counts.expert == without_zeros(EXPECTED[scope])


# ---------------------------------------------------------------- gradients


def products_of_pass_1(model, batch, monkeypatch):
    """Products inside the gradient of pass 1, and those of the backward pass of the loss."""
    first = Products()
    original = torch.autograd.grad

    def counted(*args, **kwargs):
        with first:
            return original(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    output = model(**batch)
    with Products() as second:
        output.loss.backward()
    return first, second


def weight_shapes(model):
    shapes = {tuple(w.shape) for w in model.expert.layers.parameters() if w.ndim == 2}
    return shapes | {shape[::-1] for shape in shapes}


@pytest.mark.parametrize("scope", ["all", "suffix"])
def test_pass_1_computes_no_gradient_of_a_weight(make, batch, scope, monkeypatch):
    model = make(scope)
    rows = {ROBOTS * n for n in (PREFIX, SUFFIX, QUERIES, PREFIX - 1)}
    assert not rows & {side for shape in weight_shapes(model) for side in shape}, "shapes tell weights from activations"
    first, second = products_of_pass_1(model, batch, monkeypatch)
    assert first.shapes
    assert not [shape for shape in first.shapes if shape in weight_shapes(model)]
    assert len([shape for shape in second.shapes if shape in weight_shapes(model)]) >= 10 * LAYERS


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_attention_is_fused_in_every_part(make, batch, kind):
    """VLM, its image encoder, SigLIP and expert; eager attention, when asked for, is seen by the same count."""
    model = make()
    if kind == "eager":
        model.set_attn_implementation({"vlm_config": "eager"})
    with Products() as products:
        model(**batch).loss.backward()
    assert (products.softmaxes == 0) == (kind == "sdpa")


def test_checkpointing_runs_every_layer_again_and_nothing_else(make, batch):
    """Per layer: VLM, its image encoder, expert (both passes) and SigLIP."""
    model = make()
    model.gradient_checkpointing_enable()
    counts = StepCounts(model)
    blocks = Counter()
    for kind, layers in (
        ("vision", model.vlm.model.visual.blocks),
        ("siglip", [m for m in model.expert.vision_tower.modules() if type(m).__name__ == "SiglipEncoderLayer"]),
    ):
        for layer in layers:  # their forward, since a checkpoint runs it again without the hooks of the module
            counts._before(layer.mlp, lambda _, kind=kind: blocks.update([kind]))
    output = model(**batch)
    assert blocks == {"vision": 2, "siglip": 2}
    forward = [dict(part) for part in counts.passes]
    assert forward[1] == {name: 2 * n for name, n in EXPECTED["all"][1].items()}, "pass 1 has had its backward pass"
    assert forward[2] == EXPECTED["all"][2]
    output.loss.backward()
    assert blocks == {"vision": 4, "siglip": 4}
    assert counts.passes[2] == {name: 2 * n for name, n in EXPECTED["all"][2].items()}


# ---------------------------------------------------------------- the counts notice a loss


def test_a_lost_prefix_is_counted(make, batch):
    model = make("suffix")
    original = model.expert.encode_context
    model.expert.encode_context = lambda encoded, *rest: original(replace(encoded, prefix=None), *rest)
    counts = StepCounts(model)
    model(**batch).loss.backward()
    assert counts.expert != without_zeros(EXPECTED["suffix"])
    assert counts.expert[1]["self k"] == EXPECTED["suffix"][1]["self k"] + EXPECTED["suffix"][0]["self k"]


def test_lost_image_features_are_counted(make, batch):
    model = make()
    original = model.expert.encode_context
    pixels, views = (batch[key][batch["embodiment_ids"] >= 0] for key in ("expert_pixel_values", "expert_view_mask"))

    def encoded_again(encoded, *rest):
        return original(replace(encoded, image_features=model.expert.encode_images(pixels, views)), *rest)

    model.expert.encode_context = encoded_again
    counts = StepCounts(model)
    model(**batch).loss.backward()
    assert counts.images == [ROBOTS * VIEWS] * 3


def test_weight_gradients_in_pass_1_are_counted(make, batch, monkeypatch):
    model = make()
    weights = [w for w in model.expert.layers.parameters() if w.ndim == 2]

    def all_gradients(per_sample_loss, query_states):
        gradient, *_ = torch.autograd.grad(per_sample_loss.sum(), [query_states, *weights], allow_unused=True)
        return gradient.float().norm(dim=-1)

    monkeypatch.setattr(intention_decoupling, "gradient_norms", all_gradients)
    first, _ = products_of_pass_1(model, batch, monkeypatch)
    assert [shape for shape in first.shapes if shape in weight_shapes(model)]
