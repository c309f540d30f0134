"""The VLM with Feature Query Tokens in its input: one pass, and the states that are read from it (paper, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .padding_free import FlattenedBatch
from .wrapped_vlm import require_no_images, require_read


class QueryReadingMixin:
    """Methods of a model whose VLM is `vlm` and whose learnable queries are `action_queries`."""

    config: Any
    vlm: Any
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
        is_query = input_ids == self.config.query_token_id
        rank = (is_query.cumsum(-1) - 1).clamp(0, self.config.num_query_tokens - 1)
        positions = self._positions(input_ids, attention_mask, mm_token_type_ids, image_grid_thw)[0]
        attention: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": positions}
        # Without padding, the real tokens of all samples are one long row, and attention stays within each sample.
        row = FlattenedBatch(attention_mask) if self.padding_free and not attention_mask.all() else None
        if row is not None:
            input_ids, is_query, rank = (row.flatten(x) for x in (input_ids, is_query, rank))
            implementation = self.vlm.model.language_model.config._attn_implementation
            attention = row.attention_arguments(row.flatten(positions), implementation)
        embeds = self.get_input_embeddings()(input_ids)
        embeds = torch.where(is_query[..., None], self.action_queries(rank).to(embeds.dtype), embeds)
        # Qwen3-VL takes either of the two and finds the images by their embedding; Qwen2.5-VL is quicker with both.
        takes_both = self.config.vlm_config.model_type in ("qwen2_5_vl", "qwen2_vl")
        outputs = self.vlm.model(
            input_ids=input_ids if takes_both else None,
            inputs_embeds=embeds,
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
