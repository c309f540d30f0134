"""The VLM's half: Feature Query Tokens in its input, and the states that are read from them (paper, section 3.1).

`QueryReadingMixin` makes one pass of the VLM; `ThinkingMixin` is think-before-act, with or without a chain of thought before
the queries.
"""

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

from .episode_memory import EpisodeMemory, read_prompt, require_rememberable, think_from_memory
from .last_layer import tokens_read
from .padding_free import FlattenedBatch
from .robot_encoders import all_rows
from .static_thoughts import StaticThoughts, cache_argument
from .wrapped_vlm import require_no_images, require_read


class QueryReadingMixin:
    """Methods of a model whose VLM is `vlm` and whose learnable queries are `action_queries`."""

    config: Any
    vlm: Any  # the class depends on the checkpoint's VLM
    action_queries: nn.Embedding
    get_input_embeddings: Any
    _token_types: Any
    padding_free = False  # see `padding_free.set_padding_free`

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states of the VLM, (B, L, D_vlm), with the learnable queries in place of their placeholders."""
        hidden_states: torch.Tensor = self.run_vlm(
            input_ids, attention_mask, mm_token_type_ids, pixel_values, image_grid_thw
        ).last_hidden_state
        return hidden_states

    def run_vlm(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        mm_token_type_ids: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        image_grid_thw: torch.Tensor | None,
        **kwargs: Any,
    ) -> Any:
        """As `encode`, with all that the VLM gives. kwargs: `output_hidden_states`, `output_attentions`."""
        require_read("run_vlm", kwargs, ("output_hidden_states", "output_attentions"))
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        # Queries come last in a sequence. Under the VLM's causal mask every query sees the whole prompt and thought, and no
        # token of the text sees a query: answers are those of a model without queries.
        rank = self._query_rank(input_ids)
        positions = self._positions(input_ids, attention_mask, mm_token_type_ids, image_grid_thw)[0]
        attention: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": positions}
        # Without padding, the real tokens of all samples are one long row, and attention stays within each sample.
        row = FlattenedBatch(attention_mask) if self.padding_free and not attention_mask.all() else None
        if row is not None:
            input_ids, rank = row.flatten(input_ids), row.flatten(rank)
            implementation = self.vlm.model.language_model.config._attn_implementation
            attention = row.attention_arguments(row.flatten(positions), implementation)
        outputs = self.vlm.model(
            **self.embedded(input_ids, rank),
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            use_cache=False,
            return_dict=True,
            **attention,
            **kwargs,
        )
        if row is not None:
            outputs.last_hidden_state = row.restore(outputs.last_hidden_state)
            if outputs.hidden_states is not None:
                outputs.hidden_states = tuple(h if h is None else row.restore(h) for h in outputs.hidden_states)
        return outputs

    def embedded(self, input_ids: torch.Tensor, rank: torch.Tensor | None = None) -> dict[str, torch.Tensor | None]:
        """`input_ids` and `inputs_embeds` for the VLM: tokens (B, L) with the learnable queries in their places.

        Args:
            rank: Which query stands at each query token, (B, L); None: they are counted.
        """
        rank = self._query_rank(input_ids) if rank is None else rank
        is_query = (input_ids == self.config.query_token_id)[..., None]
        embeds = self.get_input_embeddings()(input_ids)
        embeds = torch.where(is_query, self.action_queries(rank).to(embeds.dtype), embeds)
        # Qwen3-VL takes either of the two and finds the images by their embedding; Qwen2.5-VL is quicker with both.
        takes_both = self.config.vlm_config.model_type in ("qwen2_5_vl", "qwen2_vl")
        return {"input_ids": input_ids if takes_both else None, "inputs_embeds": embeds}

    def _query_rank(self, input_ids: torch.Tensor) -> torch.Tensor:
        is_query = input_ids == self.config.query_token_id
        rank: torch.Tensor = (is_query.cumsum(-1) - 1).clamp(0, self.config.num_query_tokens - 1)
        return rank

    def _positions(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        mm_token_type_ids: torch.Tensor | None,
        image_grid_thw: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """mRoPE positions (3, B, L) and their offset to plain positions (B, 1); never the module's cached state."""
        if mm_token_type_ids is None:
            mm_token_type_ids = self._token_types(input_ids)
        if image_grid_thw is None:
            require_no_images(self._token_types(input_ids))
        positions: tuple[torch.Tensor, torch.Tensor] = self.vlm.model.get_rope_index(
            input_ids,
            mm_token_type_ids=mm_token_type_ids,
            image_grid_thw=image_grid_thw,
            attention_mask=attention_mask,
        )
        return positions

    def select_query_states(self, hidden: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Feature Query States H of the samples that carry query tokens, (R, N, D_vlm)."""
        is_query = input_ids == self.config.query_token_id
        counts = is_query.sum(-1)
        wrong = (counts != 0) & (counts != self.config.num_query_tokens)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"input_ids[{row}]: expected {self.config.num_query_tokens} query tokens (num_query_tokens) or none, got "
                f"{int(counts[row])}; was the prompt made by a processor with another num_query_tokens?"
            )
        return hidden[is_query].view(-1, self.config.num_query_tokens, hidden.shape[-1])

    def condition_states(
        self, hidden: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the expert attends to, for the samples that carry query tokens.

        Returns:
            (query states (R, N, D_vlm), None), or with `conditioning="all_hidden_states"` (final hidden states of the whole
            sequence (R, L, D_vlm), bool (R, L), True for real tokens).
        """
        query_states = self.select_query_states(hidden, input_ids)
        if self.config.conditioning == "query_states":
            return query_states, None
        rows = (input_ids == self.config.query_token_id).any(-1)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return hidden[rows], mask[rows].bool()


class ThinkingMixin(QueryReadingMixin):
    """Methods of [`SyVLAModel`] that run the VLM at inference."""

    static_thoughts: StaticThoughts | None = None

    # What the methods below use of the model that this class is mixed into.
    tokenizer: PreTrainedTokenizerBase | None
    generation_config: GenerationConfig
    name_or_path: str | None
    hub_options: dict[str, Any]
    predict_actions: Callable[..., Any]
    generate: Callable[..., GenerateDecoderOnlyOutput]
    get_input_embeddings: Callable[[], nn.Module]

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
        memory: EpisodeMemory | None = None,
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
        if memory is not None:
            require_rememberable(self, len(input_ids), generate_kwargs, think)
            input_ids = input_ids[attention_mask.bool()][None]
            attention_mask = torch.ones_like(input_ids)
        images = {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw}
        if not think:
            return *self._states_without_thought(input_ids, attention_mask, images, memory), None, None
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
                input_ids,
                attention_mask,
                images,
                memory,
                max_new_tokens=max_new_tokens,
                **generate_kwargs,
                **cache,
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
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        images: dict[str, torch.Tensor | None],
        memory: EpisodeMemory | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One VLM pass over prompt and queries; see `condition_states` for what it returns."""
        lacks = (input_ids != self.config.query_token_id).all(-1, keepdim=True)
        if lacks.any():  # rows that hold their queries already get padding instead
            lacks = lacks.expand(-1, self.config.num_query_tokens)
            queries = torch.where(lacks, self.config.query_token_id, self._end_token_ids()[0])
            input_ids = torch.cat((input_ids, queries), dim=1)
            attention_mask = torch.cat((attention_mask, lacks.to(attention_mask.dtype)), dim=1)
        if memory is not None:
            positions = self._positions(input_ids, attention_mask, None, images["image_grid_thw"])[0]
            last = self.config.num_query_tokens
            return self.select_query_states(
                read_prompt(self, memory, input_ids, images, positions, last)[0], input_ids[:, -last:]
            ), None
        with tokens_read(self._read(input_ids)):
            hidden = self.encode(input_ids, attention_mask, **images)
        return self.condition_states(hidden, input_ids, attention_mask)

    def _read(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Tokens whose final hidden states the expert reads, bool (B, L)."""
        whole = self.config.conditioning != "query_states"
        read: torch.Tensor = (input_ids == self.config.query_token_id) | whole
        return read

    def _think(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        images: dict[str, torch.Tensor | None],
        memory: EpisodeMemory | None = None,
        **generate_kwargs: Any,
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
        if memory is None:
            generate_kwargs.update(images)
        else:  # which reads the images by itself, if they are new
            generate_kwargs["position_ids"] = attention_mask.cumsum(-1) - 1
            watching = generate_kwargs.get("streamer")
            generate_kwargs["custom_generate"] = think_from_memory(self, memory, images, watching)
        last = torch.zeros_like(input_ids, dtype=torch.bool)
        last[:, -1] = True  # whose logits the first token of the thought is chosen by
        with tokens_read(last):
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
        if memory is not None:
            memory.thought = thought
        if self.config.conditioning == "all_hidden_states":
            # `generate` does not keep the prompt's hidden states, so the whole sequence is encoded a second time.
            tokens = end.new_full(queries.shape[:2], self.config.query_token_id)
            whole = torch.cat((input_ids, thought, end, tokens), dim=1)
            return *self.condition_states(self.encode(whole, mask, **images), whole, mask), thought
        offset = self._positions(input_ids, attention_mask, None, images["image_grid_thw"])[1]
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
