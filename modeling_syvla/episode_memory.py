"""What one call of the VLM leaves for the next one of the same episode: its prompt's keys and values, and its thought.

*Prompt.* The tokens up to the first that differs, or up to the first image that does, keep their keys and values; only those
behind it pass the VLM again. Where cameras stand still in simulation, or where two prompts differ in their last words, that is
nearly all of a prompt; on a real robot it is the fixed head.

*Thought.* A robot's thought rarely changes from one action chunk to the next. The last one follows the new prompt as a draft,
in the pass that reads the prompt anyway, and every token of it is compared with the one that the model would generate there.
Tokens count up to the first that differs; from there on the thought is generated as always. So a thought that did not change
takes one pass instead of one per token (speculative decoding, Leviathan et al. 2023, arXiv 2211.17192, with a draft that
costs nothing).

Both are exact up to rounding: the same products, of other shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation import GenerateDecoderOnlyOutput

from .last_layer import tokens_read
from .static_thoughts import cache_argument

Image = tuple[tuple[int, ...], torch.Tensor]
"""Patches in time, height and width, and their pixels."""


@dataclass
class EpisodeMemory:
    """Given to each call of `predict_actions` of an episode, which reads and renews it. Not for two calls at once.

    Attributes:
        thought: The last thought, int64 (1, G); None before the first.
        accepted: How many tokens of the newest thought came from the one before.
        generated: How many took a pass of their own.
        reused: How many tokens of the newest prompt did not pass the VLM again.
    """

    thought: torch.Tensor | None = None
    accepted: int = 0
    generated: int = 0
    reused: int = 0
    _ids: torch.Tensor | None = field(default=None, repr=False)
    _images: list[Image] = field(default_factory=list, repr=False)
    _cache: Any = field(default=None, repr=False)

    def shared(self, ids: torch.Tensor, images: list[Image], starts: list[int]) -> int:
        """How many first tokens have the keys and values that they had in the last call.

        Args:
            ids: (1, L).
            images: Those of the prompt, in order.
            starts: Place of each image's first token.
        """
        if self._ids is None or self._ids.device != ids.device:
            return 0
        length = min(ids.shape[1], self._ids.shape[1])
        differs = (ids[0, :length] != self._ids[0, :length]).nonzero()
        common = int(differs[0]) if len(differs) else length
        for number, ((grid, pixels), start) in enumerate(zip(images, starts, strict=True)):
            last = self._images[number] if number < len(self._images) else None
            if last is None or last[0] != grid or not torch.equal(last[1], pixels):
                return min(common, start)
        return common

    def keep(self, ids: torch.Tensor, images: list[Image], cache: Any) -> None:
        """Remembers what has keys and values in the cache; further tokens in it do no harm."""
        self._ids, self._images, self._cache = ids, images, cache


def require_rememberable(policy: Any, samples: int, generate_kwargs: dict[str, Any], think: bool) -> None:
    """Raises ValueError where a call cannot go on from the last one."""
    sampled = generate_kwargs.get("do_sample")
    sampled = policy.generation_config.do_sample if sampled is None else sampled
    layers = set(getattr(policy.config.get_text_config(), "layer_types", None) or ())
    problem = None
    if samples != 1:
        problem = f"it is of one episode, and there are {samples} samples"
    elif policy.config.conditioning != "query_states":
        problem = f"conditioning={policy.config.conditioning!r} reads the hidden states of the whole prompt"
    elif layers - {"full_attention"}:
        problem = f"the VLM has {min(layers - {'full_attention'})} layers, whose state cannot take tokens back"
    elif think and policy.static_thoughts is not None:
        problem = "a key/value cache of fixed size cannot take tokens back; leave static_thoughts (and compile) off"
    elif think and sampled:
        problem = "thoughts from a draft are exact where they are greedy; pass do_sample=False"
    elif think and (generate_kwargs.get("stop_strings") or policy.generation_config.stop_strings):
        problem = "stop_strings are not looked for in a draft; end the thought by stopping_criteria"
    if problem:
        raise ValueError(f"memory: {problem}")


def memory_of_prompts(policy: Any, samples: int) -> EpisodeMemory | None:
    """A memory for several prompts of one observation, without thoughts; None where there can be none."""
    try:
        require_rememberable(policy, samples, {}, think=False)
    except ValueError:
        return None
    return EpisodeMemory()


def read_prompt(
    policy: Any,
    memory: EpisodeMemory,
    ids: torch.Tensor,
    images: dict[str, torch.Tensor | None],
    positions: torch.Tensor,
    wanted: int,
) -> tuple[torch.Tensor, Any]:
    """One pass of the VLM over what the memory does not know of a sequence.

    Args:
        policy: A [`SyVLAModel`].
        memory: What it knows; it is renewed.
        ids: One sequence without padding, (1, L).
        images: `pixel_values` and `image_grid_thw` of all its images.
        positions: mRoPE, (3, 1, L).
        wanted: How many last tokens' final hidden states are returned.

    Returns:
        (hidden states (1, wanted, D), the cache of the whole sequence).
    """
    name, config = cache_argument(policy.vlm), policy.config.vlm_config
    pixels, grids = images["pixel_values"], images["image_grid_thw"]
    parts: list[Image] = []
    starts: list[int] = []
    if pixels is not None and grids is not None:
        of_image = grids.prod(-1).tolist()
        parts = [(tuple(grid), part) for grid, part in zip(grids.tolist(), pixels.split(of_image), strict=True)]
        places = (ids[0] == config.image_token_id).nonzero()[:, 0].tolist()
        merged = config.vision_config.spatial_merge_size**2
        starts = [places[sum(of_image[:number]) // merged] for number in range(len(of_image))]
    known = min(memory.shared(ids, parts, starts), ids.shape[1] - wanted)
    if known:
        _shorten(memory._cache, known)
    memory._ids = None  # an error from here on leaves nothing behind
    rest = ids[:, known:]
    again = [number for number, start in enumerate(starts) if start >= known]
    shown: dict[str, Any] = {}
    if again and grids is not None:
        shown = {"pixel_values": torch.cat([parts[n][1] for n in again]), "image_grid_thw": grids[again]}
    read = torch.zeros_like(rest, dtype=torch.bool)
    read[:, rest.shape[1] - wanted :] = True
    with tokens_read(read):
        outputs = policy.vlm.model(
            **policy.embedded(rest),
            attention_mask=torch.ones_like(ids),
            position_ids=positions[:, :, known:],
            use_cache=True,
            return_dict=True,
            **shown,
            **({name: memory._cache} if known else {}),
        )
    cache = getattr(outputs, name)
    memory.keep(ids, parts, cache)
    memory.reused = known
    return outputs.last_hidden_state[:, -wanted:], cache


def think_from_memory(
    policy: Any, memory: EpisodeMemory, images: dict[str, torch.Tensor | None], streamer: Any = None
) -> Callable[..., Any]:
    """A `custom_generate` for `generate`: greedy decoding that begins with the last thought.

    Args:
        policy: The [`SyVLAModel`] whose VLM generates.
        memory: It is renewed.
        images: `pixel_values` and `image_grid_thw` of the prompt, which `generate` is not given.
        streamer: What watches the thought; `generate` gives it the prompt.
    """

    def decode(
        vlm: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **inputs: Any,
    ) -> GenerateDecoderOnlyOutput:
        name, length, head = cache_argument(vlm), input_ids.shape[1], vlm.get_output_embeddings()
        positions, offset = policy._positions(input_ids, torch.ones_like(input_ids), None, images["image_grid_thw"])
        draft = input_ids[:, :0] if memory.thought is None else memory.thought
        draft = draft[:, : generation_config.max_length - length]
        whole = torch.cat((input_ids, draft), dim=1)
        positions = torch.cat((positions, _positions_of_text(length, whole.shape[1], offset)), dim=2)
        hidden, cache = read_prompt(policy, memory, whole, images, positions, draft.shape[1] + 1)
        memory.keep(input_ids, memory._images, cache)  # what follows the prompt in the cache changes from here on
        sequence, done, accepted = input_ids, False, 0
        for place, logits in enumerate(head(hidden).float().unbind(1)):
            sequence, done = _next(sequence, logits, logits_processor, stopping_criteria, streamer)
            right = place < draft.shape[1] and bool(sequence[0, -1] == draft[0, place])
            accepted += right
            if done or not right:
                break
        _shorten(cache, length + accepted)
        while not done:
            end = sequence.shape[1]
            hidden = vlm.model.language_model(
                inputs_embeds=vlm.get_input_embeddings()(sequence[:, -1:]),
                attention_mask=torch.ones_like(sequence),
                position_ids=_positions_of_text(end - 1, end, offset),
                use_cache=True,
                **{name: cache},
            ).last_hidden_state
            logits = head(hidden[:, -1]).float()
            sequence, done = _next(sequence, logits, logits_processor, stopping_criteria, streamer)
        if streamer is not None:
            streamer.end()
        memory.accepted, memory.generated = accepted, sequence.shape[1] - length - accepted
        whole_output: Any = {"sequences": sequence, name: cache}
        return GenerateDecoderOnlyOutput(**whole_output)

    return decode


def _shorten(cache: Any, length: int) -> None:
    """Drops what the cache holds behind its first `length` tokens."""
    if behind := int(cache.get_seq_length()) - length:
        cache.crop(-behind)


def _positions_of_text(start: int, end: int, offset: torch.Tensor) -> torch.Tensor:
    """mRoPE positions of text tokens, (3, 1, end - start); `offset`: of them to plain ones, (1, 1)."""
    return (torch.arange(start, end, device=offset.device) + offset)[None].expand(3, -1, -1)


def _next(
    sequence: torch.Tensor, logits: torch.Tensor, logits_processor: Any, stopping_criteria: Any, streamer: Any
) -> tuple[torch.Tensor, bool]:
    """The sequence (1, L) with the most likely token behind it, and whether it is complete. logits: (1, vocabulary)."""
    scores = logits_processor(sequence, logits)
    token = scores.argmax(-1)
    sequence = torch.cat((sequence, token[:, None]), dim=1)
    if streamer is not None:
        streamer.put(token.cpu())
    return sequence, bool(stopping_criteria(sequence, scores).all())
