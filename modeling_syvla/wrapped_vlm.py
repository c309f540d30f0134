"""What a model that wraps a vision-language model owes to `transformers`, PEFT and TRL: it names what it wraps.

Arguments of a forward that nobody reads are refused by name, instead of changing nothing in silence.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers.generation.logits_process import LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.utils import TransformersKwargs

from .static_thoughts import cache_argument


class _NoQueryTokens(SuppressTokensLogitsProcessor):
    """A class of its own, since a processor that is passed replaces generation's own of the same class: a checkpoint's
    `suppress_tokens` would be lost."""


class WrappedVLMMixin:
    """Methods of models whose VLM is the attribute `vlm`."""

    config: Any
    generation_config: Any
    vlm: Any
    base_model_prefix = "vlm"

    @property
    def base_model(self) -> Any:
        """The VLM without its head, which gives hidden states; TRL's losses apply the head by themselves."""
        return self.vlm.base_model

    def name_tied_weights(self) -> None:
        """Set `_tied_weights_keys`: the VLM's own, by their names in this model. Call it before `post_init`."""
        own = self.vlm._tied_weights_keys or {}
        self._tied_weights_keys = {f"vlm.{target}": f"vlm.{source}" for target, source in own.items()}

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.vlm.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.vlm.get_output_embeddings()
        return embeddings

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_output_embeddings(value)

    def get_image_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """The VLM's image features, as its own method of this name gives them.

        Args:
            pixel_values: (patches, values per patch).
            image_grid_thw: (images, 3): patches in time, height and width.
            kwargs: As the VLM's own method: `return_dict`, `output_hidden_states`, `output_attentions` and what else its
                image encoder reads.

        Raises:
            TypeError: If an argument is unknown.
        """
        kwargs = require_read("get_image_features", kwargs, _image_arguments(self.vlm.base_model.visual.__class__))
        kwargs.setdefault("return_dict", self.config.return_dict)
        return self.vlm.get_image_features(pixel_values, image_grid_thw, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """As the VLM's own; PEFT's prompt learning replaces it on this model, see `generate`."""
        return type(self.vlm).prepare_inputs_for_generation(self.vlm, *args, **kwargs)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Answer or think in text, as the VLM alone would; query tokens are never produced.

        Takes what `transformers`' `generate` takes, `pixel_values` and `image_grid_thw` included.
        """
        processors = LogitsProcessorList(kwargs.pop("logits_processor", None) or [])
        given = (*args[:1], kwargs.get("inputs"), kwargs.get("input_ids"))
        input_ids = next((ids for ids in given if ids is not None), None)
        query_token = torch.tensor([self.config.query_token_id])
        # Where all weights are kept on disk, the model itself is on the meta device.
        device = self.vlm.device if input_ids is None else input_ids.device
        processors.append(_NoQueryTokens(query_token, device=device))
        if input_ids is not None and kwargs.get("mm_token_type_ids") is None:
            kwargs["mm_token_type_ids"] = self._token_types(input_ids)
        for name in ("pixel_values", "image_grid_thw"):  # transformers would encode a picture that is None
            if name in kwargs and kwargs[name] is None:
                del kwargs[name]
        self.vlm.generation_config = self.generation_config
        with self._lent_input_preparation():
            return self.vlm.generate(*args, logits_processor=processors, **kwargs)

    @contextmanager
    def _lent_input_preparation(self) -> Iterator[None]:
        """Within it the VLM prepares inputs with what was set on this model in place of its method."""
        replaced = vars(self).get("prepare_inputs_for_generation")
        if replaced is None:
            yield
            return
        self.vlm.prepare_inputs_for_generation = replaced
        try:
            yield
        finally:
            del self.vlm.prepare_inputs_for_generation

    def _token_types(self, input_ids: torch.Tensor) -> torch.Tensor:
        """1 at image tokens, 0 elsewhere; Qwen2.5-VL falls back to 1-D positions without it."""
        token_types: torch.Tensor = (input_ids == self.config.vlm_config.image_token_id).int()
        return token_types


class ConditionalGenerationMixin(WrappedVLMMixin):
    """The forward of [`SyVLAForConditionalGeneration`]."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the VLM's own forward.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds, use_cache, pixel_values, image_grid_thw, logits_to_keep,
                output_attentions, output_hidden_states, return_dict: As the VLM's own; None for the last three: what the
                configuration says.
            past_key_values, cache: Keys and values of earlier tokens; two names of the same argument.
            labels: (B, L), -100 where no text is to be learned.
            mm_token_type_ids: (B, L); None: 1 at image tokens, 0 elsewhere.
            kwargs: Further arguments that the VLM reads.

        Returns:
            The VLM's output: logits, and a loss when `labels` are given.

        Raises:
            TypeError: If an argument is unknown, or the cache is given under both names.
        """
        if past_key_values is not None and cache is not None:
            raise TypeError("past_key_values and cache are two names of the same argument; pass one of them")
        kwargs = require_read(type(self).__name__, kwargs, _forward_arguments(self.vlm.__class__))
        if input_ids is not None and mm_token_type_ids is None:
            mm_token_type_ids = self._token_types(input_ids)
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            cache_argument(self.vlm): cache if past_key_values is None else past_key_values,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
            "use_cache": use_cache,
            "pixel_values": pixel_values,
            "image_grid_thw": image_grid_thw,
            "mm_token_type_ids": mm_token_type_ids,
            **wanted_states(self.config, output_hidden_states, output_attentions),
            "return_dict": self.config.return_dict if return_dict is None else return_dict,
        }
        kwargs.update({name: value for name, value in given.items() if value is not None})
        return self.vlm(logits_to_keep=logits_to_keep, **kwargs)


@lru_cache
def _forward_arguments(vlm_class: Any) -> frozenset[str]:
    """Names that the forward of a VLM reads, itself or in the layers that it hands them to."""
    own = inspect.signature(vlm_class.forward).parameters
    return frozenset(own) | frozenset(TransformersKwargs.__annotations__)


@lru_cache
def _image_arguments(encoder_class: Any) -> frozenset[str]:
    """Names that `get_image_features` of a VLM hands to its image encoder, whose layers read some of them."""
    own = inspect.signature(encoder_class.forward).parameters
    states = ("return_dict", "output_hidden_states", "output_attentions")
    return frozenset(own) - {"self", "hidden_states", "grid_thw", "kwargs"} | frozenset(states)


# ---------------------------------------------------------------------- arguments of a forward


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
