"""How much each `predict_actions` call computes, counted on the modules themselves: a cache that is lost shows on any machine.

Tokens, calls and rows are counted, never time. `naive` recomputes per flow step what the policy keeps, and must be told apart.
"""

from collections import Counter

import pytest
import torch
from image_encoders import SIGLIP

from syvla.modeling_syvla.expert_inputs import ExpertObservation
from syvla.modeling_syvla.flow_matching import euler_sample
from syvla.modeling_syvla.inference_linear import FusedProjections

LAYERS, STEPS, CHUNK, QUERIES, VIEWS = 3, 5, 8, 8, 3
SUFFIX = CHUNK + 1  # timestep and actions


@pytest.fixture
def model(make_model, tiny_processor):
    model = make_model(expert_vision_config=SIGLIP, expert_image_size=SIGLIP["image_size"])
    model.tokenizer = tiny_processor.tokenizer
    return model


@pytest.fixture
def inputs(model, tiny_processor, make_item):
    tiny_processor.expert_image_processor.size = {"height": SIGLIP["image_size"], "width": SIGLIP["image_size"]}
    return tiny_processor.collate([make_item(1, actions=None)], padding_side="left")


@pytest.fixture
def counted(model, monkeypatch):
    """Counts what a call computes: rows of tokens, and calls."""
    counts: Counter[str] = Counter()
    expert, vlm = model.expert, model.vlm.model

    def hook(module, count):
        module.register_forward_hook(lambda m, args, kwargs, out: count(args, kwargs), with_kwargs=True)

    def add(**amounts):
        counts.update(amounts)

    def layer_tokens(args, kwargs):
        method, x = args[:2]
        if method.startswith("_run_"):
            add(expert_tokens=x.shape[0] * x.shape[1])

    for layer in expert.layers:
        hook(layer, layer_tokens)
        for kind, attention in (("self", layer.self_attn), ("cross", layer.cross_attn)):
            for projection in (attention.k_proj, attention.v_proj):
                hook(projection, lambda a, k, kind=kind: add(**{f"{kind}_key_value_rows": a[0].shape[:-1].numel()}))
    fused = FusedProjections.__call__

    def fused_rows(self, x):
        kind = {3: "self", 2: "cross"}[len(self.names)] if "k_proj" in self.names else "mlp"
        add(**{f"{kind}_key_value_rows" if kind != "mlp" else "fused_mlp_rows": 2 * x.shape[:-1].numel()})
        return fused(self, x)

    monkeypatch.setattr(FusedProjections, "__call__", fused_rows)
    hook(expert.vision_tower, lambda a, k: add(image_encoder_calls=1, images=len(k["pixel_values"])))
    hook(expert.time_mlp, lambda a, k: add(time_calls=1, times=len(a[0])))
    hook(model.adapter, lambda a, k: add(adapter_rows=a[0].shape[:-1].numel()))
    coders = expert.embodiments["tabletop"]
    hook(coders.state_encoder, lambda a, k: add(state_encoder_calls=1))
    hook(coders.action_encoder, lambda a, k: add(action_encoder_calls=1))
    hook(coders.action_decoder, lambda a, k: add(action_decoder_calls=1))
    hook(vlm.visual, lambda a, k: add(vlm_vision_calls=1, vlm_images=len(k.get("grid_thw", a[-1]))))
    hook(vlm.language_model.layers[0], lambda a, k: add(vlm_tokens=_hidden(a, k).shape[:-1].numel(), vlm_passes=1))
    hook(model.vlm.lm_head, lambda a, k: add(logit_rows=a[0].shape[:-1].numel()))

    def run(function) -> dict[str, int]:
        counts.clear()
        function()
        return dict(counts)

    return run


def _hidden(args, kwargs):
    return args[0] if args else kwargs["hidden_states"]


def expert_work(prefix: int) -> dict[str, int]:
    """What one action chunk may cost in the expert, for a prefix of so many tokens."""
    suffix = LAYERS * STEPS * SUFFIX
    return {
        "image_encoder_calls": 1,
        "images": VIEWS,
        "expert_tokens": (LAYERS - 1) * prefix
        + suffix,  # nothing reads the prefix after the last layer's keys and values
        "self_key_value_rows": 2 * (LAYERS * prefix + suffix),
        "cross_key_value_rows": 2 * LAYERS * QUERIES,
        "adapter_rows": QUERIES,
        "time_calls": 1,
        "times": STEPS,
        "state_encoder_calls": 1,
        "action_encoder_calls": STEPS,
        "action_decoder_calls": STEPS,
    }


@pytest.fixture
def prefix():
    return VIEWS * (SIGLIP["image_size"] // SIGLIP["patch_size"]) ** 2 + 1


@pytest.fixture(params=[False, True], ids=["plain", "fused"])
def optimized(request, model):
    if request.param:
        model.optimize_for_inference()
    return request.param


def test_one_call_without_a_thought(model, inputs, counted, prefix, optimized):
    work = counted(lambda: model.predict_actions(**inputs, num_steps=STEPS))
    length = inputs["input_ids"].shape[1] + QUERIES
    vlm = {"vlm_vision_calls": 1, "vlm_images": VIEWS, "vlm_tokens": length, "vlm_passes": 1}
    if optimized:
        assert work.pop("fused_mlp_rows") == 2 * work["expert_tokens"]
    assert work == {**expert_work(prefix), **vlm}, "no logits, no second pass, no second look"


def test_one_call_with_a_thought(model, inputs, counted, prefix, optimized):
    """The prompt and every token of the thought pass the VLM once; the queries follow on the cache."""
    new = 6
    work = counted(
        lambda: model.predict_actions(**inputs, num_steps=STEPS, think=True, max_new_tokens=new, min_new_tokens=new)
    )
    tail = 1 + 1 + QUERIES  # the last token, which `generate` leaves out of the cache; the end token; the queries
    tokens = inputs["input_ids"].shape[1] + (new - 1) + tail
    vlm = {"vlm_vision_calls": 1, "vlm_images": VIEWS, "vlm_tokens": tokens, "vlm_passes": 1 + (new - 1) + 1}
    work.pop("fused_mlp_rows", None)
    assert work == {**expert_work(prefix), **vlm, "logit_rows": new}


def test_the_fast_half_of_dual_system_use_never_runs_the_vlm(model, inputs, counted, prefix, optimized):
    states = model.predict_query_states(**{k: inputs[k] for k in ("input_ids", "pixel_values", "image_grid_thw")})[0]
    given = {k: v for k, v in inputs.items() if k in ("state", "embodiment_ids") or k.startswith("expert_")}
    work = counted(lambda: model.predict_actions(query_states=states, num_steps=STEPS, **given))
    work.pop("fused_mlp_rows", None)
    assert work == expert_work(prefix)


def test_a_batch_costs_as_many_calls_as_one_sample(model, tiny_processor, make_item, inputs, counted):
    two = tiny_processor.collate([make_item(1, actions=None), make_item(2, actions=None)], padding_side="left")
    one = counted(lambda: model.predict_actions(**inputs, num_steps=STEPS))
    both = counted(lambda: model.predict_actions(**two, num_steps=STEPS))
    calls = {name for name in one if name.endswith(("calls", "passes")) or name == "times"}
    assert {name: both[name] for name in calls} == {name: one[name] for name in calls}
    assert {name: both[name] for name in both.keys() - calls} == {name: 2 * one[name] for name in one.keys() - calls}


def test_the_same_counters_see_every_lost_cache(model, inputs, counted, prefix):
    """A loop that keeps nothing: each count that a cache saves is higher by what the cache saves."""
    given = {k: v for k, v in inputs.items() if k in ("state", "embodiment_ids") or k.startswith("expert_")}
    seen = ExpertObservation.checked(model.config, 1, **given)
    states = torch.randn(1, QUERIES, model.config.get_text_config().hidden_size)

    @torch.no_grad()
    def naive():
        def velocity(x, t):
            return model.expert.predict_velocity(x, t, model.encode_expert_context(states, seen))

        euler_sample(velocity, torch.randn(1, CHUNK, model.config.max_action_dim), STEPS)

    kept, lost = counted(lambda: model.sample_actions(states, seen, num_steps=STEPS)), counted(naive)
    assert kept == expert_work(prefix)
    more = {name: lost[name] - kept[name] for name in kept if lost[name] != kept[name]}
    assert more == {
        "image_encoder_calls": STEPS - 1,
        "images": VIEWS * (STEPS - 1),
        "expert_tokens": (LAYERS - 1) * prefix * (STEPS - 1),
        "self_key_value_rows": 2 * LAYERS * prefix * (STEPS - 1),
        "cross_key_value_rows": 2 * LAYERS * QUERIES * (STEPS - 1),
        "adapter_rows": QUERIES * (STEPS - 1),
        "time_calls": STEPS - 1,
        "state_encoder_calls": STEPS - 1,
    }
