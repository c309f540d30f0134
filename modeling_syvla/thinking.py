"""Think-before-act: query states with or without a chain of thought before them (paper, section 3.1)."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.generation import GenerateDecoderOnlyOutput

from .configuration_syvla import SyVLAConfig
from .robot_encoders import all_rows
from .static_thoughts import StaticThoughts, cache_argument


class ThinkingMixin:
    """Methods of [`SyVLAModel`] that run the VLM at inference."""

    static_thoughts: StaticThoughts | None = None

    # What the methods below use of the model that this class is mixed into.
    config: SyVLAConfig
    vlm: Any  # the class depends on the checkpoint's VLM
    action_queries: nn.Embedding
    tokenizer: PreTrainedTokenizerBase | None
    generation_config: GenerationConfig
    name_or_path: str | None
    hub_options: dict[str, Any]
    encode: Callable[..., torch.Tensor]
    predict_actions: Callable[..., Any]
    condition_states: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor | None]
    ]
    generate: Callable[..., GenerateDecoderOnlyOutput]
    get_input_embeddings: Callable[[], nn.Module]
    _positions: Callable[..., tuple[torch.Tensor, torch.Tensor]]

    @torch.no_grad()
    def predict_query_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        *,
        think: bool = False,
        max_new_tokens: int = 128,
        think_budget: float | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **generate_kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, list[str] | None, torch.Tensor | None]:
        """The slow half of `predict_actions`, which has the same arguments: what the expert then acts on.

        Returns:
            (query states (B, N, D_vlm), their mask as from `condition_states`, thoughts, thought ids (B, G)); the last two
            are None without thinking.
        """
        if not think:
            self._require_no_thought_arguments(generate_kwargs, think_budget, "pass think=True")
        input_ids, attention_mask = left_padded(input_ids, attention_mask)
        images = {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw}
        if not think:
            return *self._states_without_thought(input_ids, attention_mask, **images), None, None
        tokenizer = tokenizer or self._own_tokenizer()
        generate_kwargs["tokenizer"] = tokenizer  # for `stop_strings`
        if think_budget is not None:
            generate_kwargs["max_time"] = think_budget
        static_cache: AbstractContextManager[dict[str, Any]] = nullcontext({})
        if self.static_thoughts is not None:
            tokens = max_new_tokens + 1 + self.config.num_query_tokens  # 1: the end token of a thought that is cut
            static_cache = self.static_thoughts.reserve_cache(self.vlm, input_ids, tokens)
        with static_cache as cache:
            states, mask, thought_ids = self._think(
                input_ids, attention_mask, max_new_tokens=max_new_tokens, **images, **generate_kwargs, **cache
            )
        thoughts = [text.strip() for text in tokenizer.batch_decode(thought_ids, skip_special_tokens=True)]
        return states, mask, thoughts, thought_ids

    def _require_no_thought_arguments(
        self, given: dict[str, Any], think_budget: float | None, cure: str, think: bool = False
    ) -> None:
        """Raise TypeError if there are arguments of `generate` although nothing will be generated."""
        for name, value in {**given, "think_budget": think_budget, "think": think or None}.items():
            if value is not None:
                own = [known for known in inspect.signature(self.predict_actions).parameters if known != name]
                near = difflib.get_close_matches(name, own, n=1, cutoff=0.8)
                if name in ("labels", "actions", "action_mask"):
                    hint = "it is a training target, which no prediction reads: leave it out"
                elif near:
                    hint = f"did you mean {near[0]!r}?"
                else:
                    hint = f"it may act on a thought, but there will be none: {cure}"
                raise TypeError(f"predict_actions: unexpected argument {name!r}; {hint}")

    def _states_without_thought(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **images: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One VLM pass over prompt and queries; see `condition_states` for what it returns."""
        lacks = (input_ids != self.config.query_token_id).all(-1, keepdim=True)
        if lacks.any():  # rows that hold their queries already get padding instead
            lacks = lacks.expand(-1, self.config.num_query_tokens)
            queries = torch.where(lacks, self.config.query_token_id, self._end_token_ids()[0])
            input_ids = torch.cat((input_ids, queries), dim=1)
            attention_mask = torch.cat((attention_mask, lacks.to(attention_mask.dtype)), dim=1)
        return self.condition_states(self.encode(input_ids, attention_mask, **images), input_ids, attention_mask)

    def _think(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **generate_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Generate the thought, then run end token and queries on its key/value cache.

        Returns:
            (states and mask as from `condition_states`, thought ids (B, G)).
        """
        if (input_ids == self.config.query_token_id).any():
            raise ValueError(
                "think=True: the prompt already holds query tokens; make it without `thought` and `actions`"
            )
        if generate_kwargs.get("num_beams", 1) != 1 or generate_kwargs.get("num_return_sequences", 1) != 1:
            raise ValueError(
                "think=True: beam search and several return sequences are not supported; one thought per sample"
            )
        prompt_length = input_ids.shape[1]
        generated = self.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            return_dict_in_generate=True,
            use_cache=True,
            **generate_kwargs,
        )
        cache = getattr(generated, cache_argument(self.vlm))
        sequences = generated.sequences  # (B, L + G)
        cached = int(cache.get_seq_length())  # the last generated token is not in the cache yet
        thought = sequences[:, prompt_length:]  # (B, G)
        end_ids = torch.tensor(self._end_token_ids(), device=thought.device)
        is_end = torch.isin(thought, end_ids)
        before_end = is_end.cumsum(-1) - is_end.int() == 0  # up to and including the first end token
        unfinished = ~is_end.any(-1, keepdim=True)
        end = end_ids[:1].expand(len(thought), 1)
        tail = torch.cat((sequences[:, cached:], end), dim=1)
        queries = all_rows(self.action_queries, thought.device).expand(len(thought), -1, -1)
        embeds = self.get_input_embeddings()(tail)
        embeds = torch.cat((embeds, queries.to(embeds.dtype)), dim=1)
        mask = torch.cat(
            (attention_mask.bool(), before_end, unfinished, unfinished.new_ones(len(thought), queries.shape[1])), dim=1
        ).long()
        padding = self._end_token_ids()[0]
        thought = thought.masked_fill(~before_end, padding)
        if self.config.conditioning == "all_hidden_states":
            # `generate` does not keep the prompt's hidden states, so the whole sequence is encoded a second time.
            tokens = end.new_full(queries.shape[:2], self.config.query_token_id)
            whole = torch.cat((input_ids, thought, end, tokens), dim=1)
            images = {name: generate_kwargs.get(name) for name in ("pixel_values", "image_grid_thw")}
            return *self.condition_states(self.encode(whole, mask, **images), whole, mask), thought
        offset = self._positions(input_ids, attention_mask, None, generate_kwargs.get("image_grid_thw"))[1]
        positions = (mask.cumsum(-1) - 1)[:, cached:] + offset
        outputs = self.vlm.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions[None].expand(3, -1, -1),
            use_cache=True,
            **{cache_argument(self.vlm): cache},
        )
        return outputs.last_hidden_state[:, -queries.shape[1] :], None, thought

    def _end_token_ids(self) -> list[int]:
        """End-of-turn token first, then other end tokens of the generation config."""
        ids = self.generation_config.eos_token_id
        ids = [ids] if isinstance(ids, int) else list(ids or [])
        end_of_turn = self.config.get_text_config().eos_token_id
        end_of_turn = end_of_turn[0] if isinstance(end_of_turn, list) else end_of_turn
        return list(dict.fromkeys([end_of_turn, *ids]))

    def _own_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            if not self.name_or_path:
                raise ValueError(
                    "think=True needs a tokenizer to return thoughts as text: pass tokenizer=processor.tokenizer or set "
                    "model.tokenizer"
                )
            # With a config at hand it does not ask whether to trust the checkpoint's code, which it has no use for.
            self.tokenizer = AutoTokenizer.from_pretrained(
                self.name_or_path, config=self.config.vlm_config, **self.hub_options
            )
        return self.tokenizer


def left_padded(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Move padding to the left, order of the real tokens unchanged."""
    if attention_mask is None:
        return input_ids, torch.ones_like(input_ids)
    order = attention_mask.long().argsort(dim=1, stable=True)
    return input_ids.gather(1, order), attention_mask.gather(1, order)
