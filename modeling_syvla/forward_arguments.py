"""Arguments of a forward that nobody reads are refused by name, instead of changing nothing in silence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


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


def wanted_states(policy: Any, hidden_states: bool | None, attentions: bool | None) -> dict[str, bool]:
    """Arguments of a policy's VLM for what a forward is asked to return.

    Raises:
        ValueError: If attentions are asked for that are not kept.
    """
    if attentions:
        implementation = policy.vlm.model.language_model.config._attn_implementation
        if implementation != "eager" or policy.padding_free:
            raise ValueError(
                f"output_attentions: only eager attention on a padded batch keeps them, this model has {implementation!r} "
                f"and padding_free={policy.padding_free}; call set_attn_implementation('eager') and "
                "set_padding_free(model, False)"
            )
    wanted = {"output_hidden_states": hidden_states, "output_attentions": attentions}
    return {name: True for name, value in wanted.items() if value}


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
