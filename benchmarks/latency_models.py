"""The two policies of `benchmarks.latency`, with random weights: SyVLA, and PI0 as `transformers` has it.

Both get the same observation: the same number of camera views at 224 px, 48 tokens of text (template included), one robot
state, and both answer with a chunk of 50 actions after 10 Euler steps. What each makes of it is its own design:

- PI0: 256 tokens per view in a 2 B language model, which its flow steps attend to layer by layer.
- SyVLA: 64 merged tokens per view (Qwen2.5-VL at 224 px) and 20 queries in a 3 B language model, and once more 196 tokens
  per view (SigLIP-base) in the expert, whose flow steps attend to those and the query states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.phases import Spans

TEXT_TOKENS = 48
GRID = 16  # patches per side of a view of 224 px, for both models
FLOW_STEPS = 10
CALLS = ("action", "refresh", "action, 4 steps", "think")
"""A chunk from images and text; the expert alone on new images and old query states; with 4 flow steps; with a thought."""
SCALES = ("paper", "small", "tiny")
"""The published sizes; about a quarter of their width and a third of their depth; one for tests."""

BOUND_SIZES: dict[str, dict[str, Any]] = {"paper": {}, "small": {}, "tiny": {"shapes": [(51, 64, 64)], "nbytes": 2**20}}
"""What the machine's bound is measured with, where the default would take longer than the model."""


@dataclass
class Policy:
    """A model ready to be measured.

    Attributes:
        model: In evaluation mode.
        calls: What is measured: "action", and for SyVLA further ones. Each answers with a chunk (1, T, D).
        spans: See `benchmarks.phases`.
        phases: Phase -> spans that are added and spans that are subtracted.
        optimize: Makes the model quick; its argument are options of `optimize_for_inference`. Counting comes before.
        context: The call "refresh" without its flow steps; None where there is no such call.
    """

    model: nn.Module
    calls: dict[str, Callable[[], torch.Tensor]]
    spans: Spans
    phases: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    optimize: Callable[[dict[str, Any]], Any] = lambda options: None
    context: Callable[[], Any] | None = None


POOL_BYTES = 2**31
"""Far beyond any cache, so that every weight comes from memory, as those of a trained model do."""


def random_model(
    build: Callable[[], nn.Module], dtype: torch.dtype, device: str, pool_bytes: int | None = POOL_BYTES
) -> nn.Module:
    """A model whose weights are windows, one after the other, of a pool of random numbers that starts over at its end.

    However many billions of weights there are, they are there in seconds and in two gigabytes of memory; the work of a call
    and what it reads from memory are those of a model with weights of its own.

    Args:
        build: Makes the model, on the device and in the dtype that are set while it is called.
        dtype: Of the weights.
        device: Where they are.
        pool_bytes: Size of the pool, beyond that of the largest weight; None: every weight has numbers of its own.
    """
    from transformers import PreTrainedModel
    from transformers.initialization import no_init_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights(), torch.device(device):  # memory that is not written takes no room on a CPU
            model: Any = build().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    sizes = [p.numel() for p in model.parameters()]
    size = min(sum(sizes), max(*sizes, pool_bytes // dtype.itemsize)) if pool_bytes else sum(sizes)
    pool = torch.empty(size, device=device, dtype=dtype)
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(device, dtype)
    for part in pool.split(len(block)):
        part.copy_(block[: len(part)])
    position = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # scales of norms one, biases zero
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        if position + parameter.numel() > len(pool):
            position = 0
        parameter.data = pool[position : position + parameter.numel()].view(parameter.shape)
        position += parameter.numel()
    if isinstance(model, PreTrainedModel):
        model.tie_weights()
    return model


# ---------------------------------------------------------------------------------------------------------------- SyVLA


def syvla_config(scale: str, views: int = 3, **overrides: Any) -> Any:
    """`SyVLAConfig` of a scale, for one robot with two arms and as many camera views; `overrides` replace fields."""
    from syvla.modeling_syvla import SyVLAConfig

    fields: dict[str, Any] = {
        "embodiments": {"cobot_magic": {"state_dim": 14, "action_dim": 14}},
        "views": SyVLAConfig().views[:views],
        "chunk_size": 50,
        **overrides,
    }
    if scale == "tiny":
        return SyVLAConfig.tiny(**fields)
    if scale == "small":
        fields = {**_small_parts(SyVLAConfig()), **fields}
    return SyVLAConfig(**fields)


def _small_parts(paper: Any) -> dict[str, Any]:
    vlm = paper.vlm_config.to_dict()
    vlm["text_config"].pop("layer_types", None)
    vlm["text_config"].update(
        hidden_size=512, intermediate_size=2752, num_hidden_layers=12, num_attention_heads=4, num_key_value_heads=1
    )
    vlm["vision_config"].update(
        depth=10,
        hidden_size=320,
        intermediate_size=864,
        num_heads=4,
        out_hidden_size=512,
        fullatt_block_indexes=[1, 4, 7, 9],
    )
    siglip = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3}
    return {
        "vlm_config": vlm,
        "expert_config": {"hidden_size": 352, "num_hidden_layers": 5, "num_attention_heads": 8},
        "expert_vision_config": {**paper.expert_vision_config.to_dict(), **siglip},
    }


def syvla_inputs(
    config: Any,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    grid: int = GRID,
    text_tokens: int = TEXT_TOKENS,
    batch_size: int = 1,
) -> dict[str, torch.Tensor]:
    """Observations as the processor would return them, with random content. Queries are left to the model.

    Args:
        config: All its views are present.
        dtype: Of the real numbers.
        device: Where to.
        grid: Patches per side of the images that the VLM sees.
        text_tokens: Everything that is neither image, image delimiter nor query.
        batch_size: Number of observations.
    """
    vlm, image, views = config.vlm_config, config.vlm_config.vision_config, len(config.views)
    merged = (grid // image.spatial_merge_size) ** 2
    view = [vlm.vision_start_token_id, *[vlm.image_token_id] * merged, vlm.vision_end_token_id]
    row = [*view * views, *(token % 100 for token in range(text_tokens))]  # no special token has so small an id
    size = config.expert_image_size
    generator = torch.Generator().manual_seed(0)
    numbers = {
        "pixel_values": (batch_size * views * grid**2, 3 * image.patch_size**2 * image.temporal_patch_size),
        "state": (batch_size, config.max_state_dim),
        "expert_pixel_values": (batch_size, views, 3, size, size),
    }
    inputs = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in numbers.items()}
    inputs |= {
        "input_ids": torch.tensor([row] * batch_size),
        "attention_mask": torch.ones(batch_size, len(row), dtype=torch.long),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * (views * batch_size)),
        "embodiment_ids": torch.zeros(batch_size, dtype=torch.long),
        "expert_view_mask": torch.ones(batch_size, views, dtype=torch.bool),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def syvla_policy(scale: str, dtype: torch.dtype, device: str, *, views: int = 3, thought_tokens: int = 16) -> Policy:
    """SyVLA and its calls: "action" without thought, "refresh" of the expert on given query states, and two more."""
    from syvla.modeling_syvla import SyVLAModel
    from syvla.modeling_syvla.expert_inputs import ExpertObservation

    config = syvla_config(scale, views)
    model: Any = random_model(lambda: SyVLAModel(config), dtype, device)
    inputs = syvla_inputs(config, dtype, device)
    queries = torch.randn(1, config.num_query_tokens, config.get_text_config().hidden_size).to(device, dtype)
    own = ("state", "embodiment_ids", "expert_pixel_values", "expert_view_mask")
    observation = {name: inputs[name] for name in own}
    thought = {"max_new_tokens": thought_tokens, "min_new_tokens": thought_tokens, "do_sample": False}
    spans: Spans = {
        "slow": (model, "predict_query_states"),
        "vision": (model.vlm.model.visual, "forward"),
        "language": (model.vlm.model.language_model, "forward"),
        "fast": (model, "sample_actions"),
        "context": (model, "encode_expert_context"),
        "images": (model.expert, "encode_images"),
    }
    return Policy(
        model,
        {
            "action": lambda: model.predict_actions(**inputs, num_steps=FLOW_STEPS).actions,
            "refresh": lambda: model.predict_actions(query_states=queries, num_steps=FLOW_STEPS, **observation).actions,
            "action, 4 steps": lambda: model.predict_actions(**inputs, num_steps=4).actions,
            "think": lambda: (
                model.predict_actions(**inputs, think=True, num_steps=FLOW_STEPS, tokenizer=NoText(), **thought).actions
            ),
        },
        spans,
        {
            "vision": (("vision",), ()),
            "prefill with queries": (("slow",), ("vision",)),
            "expert vision": (("images",), ()),
            "expert prefix": (("context",), ("images",)),
            "denoise": (("fast",), ("context",)),
        },
        lambda options: model.optimize_for_inference(**options, strict=options["pack_weights"]),
        lambda: model.encode_expert_context(queries, ExpertObservation.checked(config, 1, **observation)),
    )


class NoText:
    """Thoughts of random weights mean nothing and are not turned into text."""

    def batch_decode(self, ids: torch.Tensor, **kwargs: Any) -> list[str]:
        return [""] * len(ids)


# ------------------------------------------------------------------------------------------------------------------ PI0


def pi0_config(scale: str) -> Any:
    """`transformers`' `PI0Config` of a scale."""
    from transformers import PI0Config

    paper = PI0Config()
    if scale == "paper":
        return paper
    vlm, dit = paper.vlm_config.to_dict(), paper.dit_config.to_dict()
    text, vision = vlm["text_config"], vlm["vision_config"]
    for part in (text, dit):
        part.pop("layer_types", None)
    if scale == "small":
        text.update(hidden_size=512, intermediate_size=4096, num_hidden_layers=6, num_attention_heads=2, head_dim=256)
        vision.update(hidden_size=288, intermediate_size=1076, num_hidden_layers=9, num_attention_heads=4)
        dit.update(hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=2)
    else:
        text.update(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, head_dim=16)
        vision.update(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        dit.update(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, head_dim=16)
        text["vocab_size"] = 1000
        vlm["image_token_id"] = 999
    vlm["projection_dim"] = vision["projection_dim"] = text["hidden_size"]
    return PI0Config(vlm_config=vlm, dit_config=dit)


def pi0_policy(scale: str, dtype: torch.dtype, device: str, *, views: int = 3, thought_tokens: int = 0) -> Policy:
    """PI0 and its one call, "action". It does not think: `thought_tokens` changes nothing."""
    from transformers import PI0ForConditionalGeneration

    config = pi0_config(scale)
    model: Any = random_model(lambda: PI0ForConditionalGeneration(config), dtype, device)
    image = config.vlm_config.vision_config
    generator = torch.Generator().manual_seed(0)
    row = [*[config.vlm_config.image_token_id] * (views * GRID**2), *range(TEXT_TOKENS)]
    inputs = {
        "state": torch.randn(1, config.max_state_dim, generator=generator).to(dtype),
        "input_ids": torch.tensor([row]),
        "attention_mask": torch.ones(1, len(row), dtype=torch.long),
        "pixel_values": torch.randn(1, views, 3, image.image_size, image.image_size, generator=generator).to(dtype),
        "pixel_attention_mask": torch.ones(1, views, dtype=torch.bool),
    }
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    vlm = model.model.vlm
    spans: Spans = {"vision": (vlm, "get_image_features"), "language": (vlm, "forward")}
    return Policy(
        model,
        {"action": lambda: model.sample_actions(**inputs, num_steps=FLOW_STEPS)},
        spans,
        {
            "vision": (("vision",), ()),
            "prefill": (("language",), ()),
            "denoise": (("total",), ("vision", "language")),
        },
    )


POLICIES = {"syvla": syvla_policy, "pi0": pi0_policy}
