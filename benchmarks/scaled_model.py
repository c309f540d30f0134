"""SyVLA at the paper's proportions, scaled down to what a machine can run: widths and depths of all parts alike."""

from __future__ import annotations

from typing import Any

import torch

from syvla.modeling_syvla import SyVLAConfig
from syvla.modeling_syvla.configuration_syvla import TINY_TOKEN_IDS

ROBOTS = {"robot": {"state_dim": 14, "action_dim": 14}}
VIEW_SIZE = 224
TEXT_TOKENS = 40


def scaled_config(width: int = 4, depth: int = 3, **expert: Any) -> SyVLAConfig:
    """The paper's configuration with all widths divided by `width` and all depths by `depth`; 1 and 1 are the paper's.

    Heads keep their width, so that attention takes the kernels that it takes at full size. The vocabulary shrinks with
    both, as the share of its embedding in the weights would otherwise grow.

    Args:
        expert: Fields of the expert's config to change.
    """
    vlm = SyVLAConfig().vlm_config.to_dict()
    text, vision = vlm["text_config"], vlm["vision_config"]
    text.pop("layer_types", None)
    special = {key: TINY_TOKEN_IDS[token] for key, token in (
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    )}  # fmt: skip
    vlm.update(special)
    text.update(
        hidden_size=text["hidden_size"] // width,
        intermediate_size=text["intermediate_size"] // width,
        num_hidden_layers=_layers(text["num_hidden_layers"], depth),
        num_attention_heads=text["num_attention_heads"] // width,
        num_key_value_heads=max(1, text["num_key_value_heads"] // width),
        vocab_size=max(512, text["vocab_size"] // (width * depth)),
        bos_token_id=TINY_TOKEN_IDS["<|endoftext|>"],
        eos_token_id=TINY_TOKEN_IDS["<|im_end|>"],
        pad_token_id=TINY_TOKEN_IDS["<|endoftext|>"],
    )
    blocks = _layers(vision["depth"], depth)
    vision.update(
        depth=blocks,
        hidden_size=vision["hidden_size"] // width,
        intermediate_size=vision["intermediate_size"] // width,
        num_heads=vision["num_heads"] // width,
        out_hidden_size=text["hidden_size"],
        fullatt_block_indexes=[i for i in range(blocks) if i % 8 == 7 or i == blocks - 1],
    )
    siglip = {"model_type": "siglip_vision_model", "vision_use_head": False, "image_size": VIEW_SIZE, "patch_size": 16}
    return SyVLAConfig(
        vlm_config=vlm,
        expert_config={
            "hidden_size": 1408 // width,
            "num_hidden_layers": _layers(15, depth),
            "num_attention_heads": 32 // width,
            **expert,
        },
        expert_vision_config={
            **siglip,
            "hidden_size": 768 // width,
            "intermediate_size": 3072 // width,
            "num_hidden_layers": _layers(12, depth),
            "num_attention_heads": 12 // width,
        },
        embodiments=ROBOTS,
        query_token_id=TINY_TOKEN_IDS["<|action_query|>"],
    )


def _layers(paper: int, depth: int) -> int:
    return max(1, round(paper / depth))


def robot_tokens(config: SyVLAConfig, text_tokens: int = TEXT_TOKENS, views: int = 3) -> list[int]:
    """Ids of a robot sample: views of 224 px, text, queries."""
    return [*image_tokens(config) * views, *_text(text_tokens), *[config.query_token_id] * config.num_query_tokens]


def image_tokens(config: SyVLAConfig, side: int = VIEW_SIZE) -> list[int]:
    """Ids of one image between its marks."""
    vision = config.vlm_config.vision_config
    merged = (side // vision.patch_size // vision.spatial_merge_size) ** 2
    marks = (config.vlm_config.vision_start_token_id, config.vlm_config.vision_end_token_id)
    return [marks[0], *[config.vlm_config.image_token_id] * merged, marks[1]]


def chat_tokens(config: SyVLAConfig, side: int, text_tokens: int) -> list[int]:
    """Ids of a multi-modal sample: one image and its question and answer."""
    return [*image_tokens(config, side), *_text(text_tokens)]


def _text(count: int) -> list[int]:
    return [17 + i % 400 for i in range(count)]  # any ids below the special ones


def make_batch(
    config: SyVLAConfig,
    batch_size: int,
    chats: int = 0,
    *,
    rows: list[list[int]] | None = None,
    grids: list[tuple[int, int]] | None = None,
    answer_tokens: int = 20,
) -> dict[str, torch.Tensor]:
    """Random samples, padded on the right: robots first, then chats with an answer to learn.

    Args:
        batch_size: Robot samples, each with 3 views.
        chats: Multi-modal samples.
        rows, grids: Token ids of all samples, and patches (height, width) of all images in order; None: robots of equal
            length and chats with one image of 448 px.
        answer_tokens: Last tokens of each chat, which are learned.
    """
    generator = torch.Generator().manual_seed(0)
    vision = config.vlm_config.vision_config
    if rows is None or grids is None:
        rows = [robot_tokens(config)] * batch_size + [chat_tokens(config, 448, 60)] * chats
        side, large = VIEW_SIZE // vision.patch_size, 448 // vision.patch_size
        grids = [(side, side)] * (3 * batch_size) + [(large, large)] * chats
    count, length = len(rows), max(map(len, rows))
    input_ids = torch.zeros(count, length, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row)
        attention_mask[i, : len(row)] = 1
        if i >= batch_size:
            labels[i, len(row) - answer_tokens : len(row)] = input_ids[i, len(row) - answer_tokens : len(row)]
    pixels = vision.patch_size**2 * 3 * vision.temporal_patch_size
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": torch.randn(sum(h * w for h, w in grids), pixels, generator=generator),
        "image_grid_thw": torch.tensor([[1, h, w] for h, w in grids]),
        "state": torch.randn(count, 14, generator=generator),
        "embodiment_ids": torch.tensor([0] * batch_size + [-1] * (count - batch_size)),
        "actions": torch.randn(count, config.chunk_size, 14, generator=generator),
        "expert_pixel_values": torch.randn(count, 3, 3, VIEW_SIZE, VIEW_SIZE, generator=generator),
    }
    return {**batch, "labels": labels} if count > batch_size else batch
