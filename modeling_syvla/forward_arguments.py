"""Arguments of a forward that nobody reads are refused by name, instead of changing nothing in silence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch


def require_read(
    model: str, given: Mapping[str, Any], read: Collection[str] = (), refused: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Further arguments of a forward, once it is clear that all of them act.

    None, and False for an argument of `refused`, ask for nothing and are dropped: PEFT and TRL pass all names that they
    know.

    Args:
        model: Name of the class, for the message.
        given: The `**kwargs` of the forward.
        read: Names that it reads.
        refused: Known names that it cannot honor -> why, and what to do instead.

    Raises:
        TypeError: If a name is not read.
        ValueError: If a name is refused.
    """
    refused = refused or {}
    kept = {}
    for name, value in given.items():
        if value is None or (name in refused and value is False):
            continue
        if name in refused:
            raise ValueError(f"{name}: {model} does not take it: {refused[name]}")
        if name not in read:
            raise TypeError(f"{model}.forward: unknown argument {name!r}")
        kept[name] = value
    return kept


def require_no_images(token_types: torch.Tensor) -> None:
    """Raise ValueError if tokens (B, L) of these types are images', where no image is given."""
    if count := int((token_types != 0).sum()):
        raise ValueError(
            f"image_grid_thw: expected (images, 3), got None; input_ids hold {count} image tokens, so pass pixel_values and "
            "image_grid_thw as the processor gives them"
        )


def wanted_states(config: Any, hidden_states: Any, attentions: bool | None) -> dict[str, Any]:
    """Arguments of a VLM for what a forward is asked to return; None: what the configuration says.

    `hidden_states` may also name those to keep, by their places, as the newer transformers take them.
    """
    hidden_states = config.output_hidden_states if hidden_states is None else hidden_states
    attentions = config.output_attentions if attentions is None else attentions
    wanted = {"output_hidden_states": hidden_states, "output_attentions": attentions}
    return {name: value for name, value in wanted.items() if value is not None and value is not False}


def require_kept(policy: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments, once it is clear that the policy's attention keeps what they ask for.

    Raises:
        ValueError: If attentions are asked for that are not kept.
    """
    if wanted.get("output_attentions"):
        implementation = policy.vlm.model.language_model.config._attn_implementation
        if implementation != "eager" or policy.padding_free:
            raise ValueError(
                f"output_attentions: only eager attention on a padded batch keeps them, this model has {implementation!r} "
                f"and padding_free={policy.padding_free}; call set_attn_implementation('eager') and "
                "set_padding_free(model, False)"
            )
    return dict(wanted)


# What a policy's forward finds out itself; other models take it from the caller.
FOUND_OUT_HERE = {
    "inputs_embeds": "it finds images and query tokens by their ids; pass input_ids",
    "position_ids": "it computes mRoPE positions from input_ids and image_grid_thw",
    "past_key_values": "a training step keeps no cache; for inference there are predict_actions and generate",
    "cache": "a training step keeps no cache; for inference there are predict_actions and generate",
    "use_cache": "a training step keeps no cache; for inference there are predict_actions and generate",
    "pixel_values_videos": "it reads images only; pass frames as images",
    "video_grid_thw": "it reads images only; pass frames as images",
    "logits_to_keep": "it computes logits at the labels alone; SyVLAForConditionalGeneration returns logits",
}
