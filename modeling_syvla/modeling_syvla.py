"""SyVLA: a vision-language model that thinks, N query tokens that read its intention, an expert that acts.

Paper: "Scaling by Diversified Experience for Vision-Language-Action Models", sections 3.1 and 3.2, appendix A.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.generation.logits_process import LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.utils import ModelOutput

from .action_expert import ActionExpert, EmbodimentCoders, ExpertContext, ExpertRMSNorm, KeyValue, QueryAdapter
from .configuration_syvla import SyVLAConfig
from .flow_matching import euler_sample, flow_matching_loss, interpolate, sample_timesteps
from .intention_decoupling import decouple
from .vlm_positions import use_right_image_positions

logger = logging.getLogger(__name__)


@dataclass
class SyVLAOutput(ModelOutput):
    """Output of [`SyVLAModel.forward`]. R counts the samples of the batch that carry query tokens (robot samples).

    Attributes:
        loss: Weighted sum of the losses that the batch allows.
        action_loss: Flow-matching loss, mean over robot samples.
        lm_loss: Cross-entropy on the label tokens, mean over tokens.
        action_loss_per_sample: float32 (R,), second pass.
        query_states: H in the paper, (R, N, D_vlm), before masking.
        query_mask: bool (R, N), True where Intention Decoupling kept the state.
    """

    loss: torch.FloatTensor | None = None
    action_loss: torch.FloatTensor | None = None
    lm_loss: torch.FloatTensor | None = None
    action_loss_per_sample: torch.FloatTensor | None = None
    query_states: torch.FloatTensor | None = None
    query_mask: torch.BoolTensor | None = None


@dataclass
class SyVLAActionOutput(ModelOutput):
    """Output of [`SyVLAModel.predict_actions`].

    Attributes:
        actions: Normalised action chunks, float32 (B, T, D_action_max); `processor.decode_actions` gives physical units.
        thoughts: Chain of thought per sample, or None without thinking.
        thought_ids: Its token ids, (B, G), padded after the end token; None without thinking.
        query_states: (B, N, D_vlm).
    """

    actions: torch.FloatTensor | None = None
    thoughts: list[str] | None = None
    thought_ids: torch.LongTensor | None = None
    query_states: torch.FloatTensor | None = None


class SyVLAPreTrainedModel(PreTrainedModel):
    config_class = SyVLAConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    model_tags = ["robotics", "vision-language-action", "vla", "syvla"]
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # The losses are means over the micro-batch, so accumulation divides by its number of steps.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock", "ExpertLayer", "SiglipEncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]

    def _init_weights(self, module: nn.Module) -> None:
        """Only our own modules come here; VLM and image encoder initialise theirs."""
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=module.embedding_dim**-0.5)
        elif isinstance(module, ExpertRMSNorm):
            init.ones_(module.weight)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, allow_missing_weights: bool = False, **kwargs: Any
    ) -> Any:
        """Load a checkpoint; see [`PreTrainedModel.from_pretrained`].

        Args:
            allow_missing_weights: Accept a checkpoint that lacks weights or has them in another shape (they are then
                initialised), or has some that the model does not know. Off by default, since a silently re-initialised
                weight ruins a policy.

        Raises:
            ValueError: If weights are missing, unexpected or of another shape; the message names them all.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        other_shapes = kwargs.pop("ignore_mismatched_sizes", False)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        if not allow_missing_weights:
            _require_complete(info, pretrained_model_name_or_path, other_shapes)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        # The default would write the nested VLM under the keys of an older layout, which other readers do not know.
        kwargs.setdefault("save_original_format", False)
        kwargs.setdefault("max_shard_size", "5GB")
        # By itself only the class that saves would be listed; the other one reads the same weights.
        self.config.auto_map = {
            "AutoConfig": "configuration_syvla.SyVLAConfig",
            "AutoModel": "modeling_syvla.SyVLAModel",
            "AutoModelForImageTextToText": "modeling_syvla.SyVLAForConditionalGeneration",
        }
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.vlm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_output_embeddings(value)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Answer or think in text, as the VLM alone would; query tokens are never produced.

        Takes what `transformers`' `generate` takes, `pixel_values` and `image_grid_thw` included.
        """
        processors = LogitsProcessorList(kwargs.pop("logits_processor", None) or [])
        query_token = torch.tensor([self.config.query_token_id])
        processors.append(SuppressTokensLogitsProcessor(query_token, device=self.vlm.device))
        given = (*args[:1], kwargs.get("inputs"), kwargs.get("input_ids"))
        input_ids = next((ids for ids in given if ids is not None), None)
        if input_ids is not None and kwargs.get("mm_token_type_ids") is None:
            kwargs["mm_token_type_ids"] = self._token_types(input_ids)
        self.vlm.generation_config = self.generation_config
        return self.vlm.generate(*args, logits_processor=processors, **kwargs)

    def _token_types(self, input_ids: torch.Tensor) -> torch.Tensor:
        """1 at image tokens, 0 elsewhere; Qwen2.5-VL falls back to 1-D positions without it."""
        return (input_ids == self.config.vlm_config.image_token_id).int()


class SyVLAModel(SyVLAPreTrainedModel, GenerationMixin):
    """The whole policy: VLM, Feature Query Tokens, adapter and action expert."""

    def __init__(self, config: SyVLAConfig) -> None:
        super().__init__(config)
        vlm_width = config.vlm_config.get_text_config().hidden_size
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config)
        use_right_image_positions(self.vlm)
        self.action_queries = nn.Embedding(config.num_query_tokens, vlm_width)  # Feature Query Tokens
        self.adapter = QueryAdapter(vlm_width, config.expert_config.hidden_size)
        self.expert = ActionExpert(config)
        self.tokenizer: Any = None  # set it, or let `predict_actions` load it from the checkpoint, to read thoughts
        self.post_init()

    # ------------------------------------------------------------------ VLM

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Final hidden states of the VLM, (B, L, D_vlm), with the learnable queries in place of their placeholders."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        is_query = input_ids == self.config.query_token_id
        rank = (is_query.cumsum(-1) - 1).clamp(0, self.config.num_query_tokens - 1)
        embeds = self.get_input_embeddings()(input_ids)
        embeds = torch.where(is_query[..., None], self.action_queries(rank).to(embeds.dtype), embeds)
        outputs = self.vlm.model(
            input_ids=input_ids,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=self._positions(input_ids, attention_mask, mm_token_type_ids, image_grid_thw)[0],
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            use_cache=False,
            **kwargs,
        )
        return outputs.last_hidden_state

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
        return self.vlm.model.get_rope_index(
            input_ids,
            mm_token_type_ids=mm_token_type_ids,
            image_grid_thw=image_grid_thw,
            attention_mask=attention_mask,
        )

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

    def lm_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy on the label tokens only; logits are computed at those positions alone. Scalar, float32."""
        target = labels[:, 1:]
        keep = target != -100
        logits = self.get_output_embeddings()(hidden[:, :-1][keep])  # (labelled tokens, vocabulary)
        return F.cross_entropy(logits.float(), target[keep], reduction="sum") / keep.sum().clamp(min=1)

    # ------------------------------------------------------------------ training

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        embodiment_ids: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        action_mask: torch.Tensor | None = None,
        expert_pixel_values: torch.Tensor | None = None,
        expert_view_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SyVLAOutput:
        """Losses of a batch that may mix robot samples with multi-modal ones.

        Args:
            input_ids, attention_mask, mm_token_type_ids: (B, L); robot samples hold N query placeholders.
            pixel_values, image_grid_thw: Images of the VLM, as Qwen2.5-VL takes them.
            labels: (B, L), -100 where no text is to be learned.
            state: Normalised, zero-padded, (B, D_state_max).
            embodiment_ids: (B,), -1 for samples without actions.
            actions: Normalised, zero-padded, (B, T, D_action_max).
            action_mask: bool (B, T, D_action_max), True where real. None: all steps, the embodiment's dimensions.
            expert_pixel_values: (B, V, 3, h, w); expert_view_mask: bool (B, V), None: all views present.
            noise, timestep: Flow noise (B, T, D_action_max) and time (B,); drawn when not given.

        Returns:
            [`SyVLAOutput`].
        """
        hidden = self.encode(input_ids, attention_mask, mm_token_type_ids, pixel_values, image_grid_thw, **kwargs)
        query_states = self.select_query_states(hidden, input_ids)
        output = SyVLAOutput(query_states=query_states)
        losses = []
        if labels is not None:
            output.lm_loss = self.lm_loss(hidden, labels)
            losses.append(self.config.lm_loss_weight * output.lm_loss)
        if actions is not None:
            batch = self._robot_rows(
                query_states, input_ids, embodiment_ids, state, expert_pixel_values, expert_view_mask
            )
            rows = batch.pop("rows")
            pick = [None if x is None else x[rows] for x in (action_mask, noise, timestep)]
            if query_states.shape[0]:
                per_sample, mask = self.action_loss(query_states, actions[rows], *pick, **batch)
                output.action_loss_per_sample, output.query_mask = per_sample, mask
                output.action_loss = per_sample.mean()
            else:
                output.action_loss = torch.zeros((), device=hidden.device)
            losses.append(self.config.action_loss_weight * output.action_loss)
        if losses:
            output.loss = sum(losses)
            if self.training:
                acted = output.action_loss_per_sample is not None
                output.loss = output.loss + self._touch_unused(acted, pixel_values is not None)
        return output

    def action_loss(
        self,
        query_states: torch.Tensor,
        actions: torch.Tensor,
        action_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        *,
        state: torch.Tensor,
        embodiment_ids: torch.Tensor,
        expert_pixel_values: torch.Tensor,
        expert_view_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Flow-matching loss per sample, with Intention Decoupling when training.

        Both passes share noise, timestep and image features; the first one yields no gradient for any weight.

        Returns:
            (loss float32 (R,), mask of kept query states bool (R, N) or None when decoupling is off or in evaluation).
        """
        actions = self._full_width("actions", actions.float(), embodiment_ids)
        if action_mask is None:
            action_mask = self._default_action_mask(actions, embodiment_ids)
        action_mask = self._full_width("action_mask", action_mask, embodiment_ids)
        actions = torch.where(action_mask, actions, torch.zeros_like(actions))
        if noise is None:
            noise = torch.randn_like(actions)
        noise = self._full_width("noise", noise, embodiment_ids)
        if timestep is None:
            c = self.config
            timestep = sample_timesteps(
                len(actions), c.time_beta_alpha, c.time_beta_beta, c.time_max, device=actions.device
            )
        noisy_actions = interpolate(noise, actions, timestep)
        features = self.expert.encode_images(expert_pixel_values, expert_view_mask)
        observation = (expert_view_mask, state, embodiment_ids)
        prefix: list[KeyValue] | None = None
        if self.config.expert_config.cross_attention_scope == "suffix":
            prefix = self.expert.encode_prefix(features, *observation, [None] * len(self.expert.layers))

        def loss_of(h: torch.Tensor, image_features: torch.Tensor, kept: list[KeyValue] | None) -> torch.Tensor:
            context = self.expert.encode_context(image_features, *observation, self._condition(h), kept)
            velocity = self.expert.predict_velocity(noisy_actions, timestep, context)
            return flow_matching_loss(velocity, noise, actions, action_mask)

        mask = None
        if self.training and self.config.intention_decoupling and torch.is_grad_enabled():
            frozen = None if prefix is None else [(k.detach(), v.detach()) for k, v in prefix]
            query_states, mask = decouple(
                query_states,
                lambda h: loss_of(h, features.detach(), frozen),
                self.config.decoupling_quantile,
                self.config.decoupling_scope,
            )
        return loss_of(query_states, features, prefix), mask

    # ------------------------------------------------------------------ inference

    @torch.no_grad()
    def predict_actions(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        embodiment_ids: torch.Tensor | None = None,
        expert_pixel_values: torch.Tensor | None = None,
        expert_view_mask: torch.Tensor | None = None,
        *,
        think: bool = False,
        max_new_tokens: int = 128,
        num_steps: int | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        query_states: torch.Tensor | None = None,
        tokenizer: Any = None,
        **generate_kwargs: Any,
    ) -> SyVLAActionOutput:
        """Action chunks for a batch of observations, with or without a thought first.

        Args:
            input_ids ... expert_view_mask: What the processor returns for observations (no actions, no thought), padded
                on either side. A prompt that already ends in query tokens is taken as it is.
            think: Generate a chain of thought and append the queries to its key/value cache.
            max_new_tokens: Limit of the thought; a thought that is cut gets the end token it was trained with.
            num_steps: Euler steps; None: `config.num_inference_steps`.
            noise: Initial noise (B, chunk_size, D_action_max), else drawn from `generator`.
            query_states: Skip the VLM and act on these states, (B, N, D_vlm) (asynchronous use, section 3.1).
            tokenizer: Turns thoughts into text; None: `self.tokenizer`, else the one saved with the checkpoint.
            generate_kwargs: Further arguments of `generate` for the thought, such as `do_sample`.

        Returns:
            [`SyVLAActionOutput`].
        """
        thought_ids = thoughts = None
        if query_states is None:
            if input_ids is None:
                raise ValueError("predict_actions: expected input_ids (and images) or query_states, got neither")
            input_ids, attention_mask = _left_padded(input_ids, attention_mask)
            images = {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw}
            if think:
                tokenizer = tokenizer or self._own_tokenizer()
                query_states, thought_ids = self._think(
                    input_ids, attention_mask, max_new_tokens=max_new_tokens, **images, **generate_kwargs
                )
                thoughts = [text.strip() for text in tokenizer.batch_decode(thought_ids, skip_special_tokens=True)]
            else:
                query_states = self._query_states_without_thought(input_ids, attention_mask, **images)
        batch = self._robot_rows(query_states, None, embodiment_ids, state, expert_pixel_values, expert_view_mask)
        batch.pop("rows")
        actions = self.sample_actions(query_states, num_steps=num_steps, noise=noise, generator=generator, **batch)
        return SyVLAActionOutput(actions=actions, thoughts=thoughts, thought_ids=thought_ids, query_states=query_states)

    @torch.no_grad()
    def sample_actions(
        self,
        query_states: torch.Tensor,
        *,
        state: torch.Tensor,
        embodiment_ids: torch.Tensor,
        expert_pixel_values: torch.Tensor,
        expert_view_mask: torch.Tensor,
        num_steps: int | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Denoise chunks on given query states; the expert's context is computed once. float32 (B, T, D_action_max)."""
        shape = (len(query_states), self.config.chunk_size, self.config.max_action_dim)
        if noise is None:
            noise = torch.randn(shape, device=query_states.device, dtype=torch.float32, generator=generator)
        elif tuple(noise.shape) != shape:
            raise ValueError(
                f"noise: expected shape {shape} (batch, chunk_size, max_action_dim), got {tuple(noise.shape)}"
            )
        context = self.encode_expert_context(query_states, state, embodiment_ids, expert_pixel_values, expert_view_mask)
        actions = euler_sample(
            lambda x, t: self.expert.predict_velocity(x, t, context),
            noise.float(),
            self.config.num_inference_steps if num_steps is None else num_steps,
        )
        own_dims = self._default_action_mask(actions, embodiment_ids)
        return torch.where(own_dims, actions, torch.zeros_like(actions))

    def encode_expert_context(
        self,
        query_states: torch.Tensor,
        state: torch.Tensor,
        embodiment_ids: torch.Tensor,
        expert_pixel_values: torch.Tensor,
        expert_view_mask: torch.Tensor,
    ) -> ExpertContext:
        """All that the flow steps of one observation share."""
        features = self.expert.encode_images(expert_pixel_values, expert_view_mask)
        return self.expert.encode_context(
            features, expert_view_mask, state, embodiment_ids, self._condition(query_states)
        )

    def _condition(self, query_states: torch.Tensor) -> torch.Tensor:
        return self.adapter(query_states.to(self.adapter[0].weight.dtype))  # C in the paper, (B, N, D)

    def _query_states_without_thought(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **images: torch.Tensor | None
    ) -> torch.Tensor:
        """One VLM pass over prompt and queries."""
        lacks = (input_ids != self.config.query_token_id).all(-1, keepdim=True)
        if lacks.any():  # rows that hold their queries already get padding instead
            lacks = lacks.expand(-1, self.config.num_query_tokens)
            queries = torch.where(lacks, self.config.query_token_id, self._end_token_ids()[0])
            input_ids = torch.cat((input_ids, queries), dim=1)
            attention_mask = torch.cat((attention_mask, lacks.to(attention_mask.dtype)), dim=1)
        return self.select_query_states(self.encode(input_ids, attention_mask, **images), input_ids)

    def _think(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **generate_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Generate the thought, then run end token and queries on its key/value cache.

        Returns:
            (query states (B, N, D_vlm), thought ids (B, G)).
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
        cache, sequences = generated.past_key_values, generated.sequences
        cached = cache.get_seq_length()  # the last generated token is not in the cache yet
        thought = sequences[:, prompt_length:]
        end_ids = torch.tensor(self._end_token_ids(), device=thought.device)
        is_end = torch.isin(thought, end_ids)
        before_end = is_end.cumsum(-1) - is_end.int() == 0  # up to and including the first end token
        unfinished = ~is_end.any(-1, keepdim=True)
        end = end_ids[:1].expand(len(thought), 1)
        tail = torch.cat((sequences[:, cached:], end), dim=1)
        queries = self.action_queries.weight.expand(len(thought), -1, -1)
        embeds = self.get_input_embeddings()(tail)
        embeds = torch.cat((embeds, queries.to(embeds.dtype)), dim=1)
        mask = torch.cat(
            (attention_mask.bool(), before_end, unfinished, unfinished.new_ones(len(thought), queries.shape[1])), dim=1
        ).long()
        offset = self._positions(input_ids, attention_mask, None, generate_kwargs.get("image_grid_thw"))[1]
        positions = (mask.cumsum(-1) - 1)[:, cached:] + offset
        outputs = self.vlm.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions[None].expand(3, -1, -1),
            past_key_values=cache,
            use_cache=True,
        )
        padding = self._end_token_ids()[0]
        return outputs.last_hidden_state[:, -queries.shape[1] :], thought.masked_fill(~before_end, padding)

    def _end_token_ids(self) -> list[int]:
        """End-of-turn token first, then other end tokens of the generation config."""
        ids = self.generation_config.eos_token_id
        ids = [ids] if isinstance(ids, int) else list(ids or [])
        end_of_turn = self.config.get_text_config().eos_token_id
        end_of_turn = end_of_turn[0] if isinstance(end_of_turn, list) else end_of_turn
        return list(dict.fromkeys([end_of_turn, *ids]))

    def _own_tokenizer(self) -> Any:
        if self.tokenizer is None:
            if not self.name_or_path:
                raise ValueError(
                    "think=True needs a tokenizer to return thoughts as text: pass tokenizer=processor.tokenizer or set "
                    "model.tokenizer"
                )
            # With a config at hand it does not ask whether to trust the checkpoint's code, which it has no use for.
            self.tokenizer = AutoTokenizer.from_pretrained(self.name_or_path, config=self.config.vlm_config)
        return self.tokenizer

    # ------------------------------------------------------------------ batches and embodiments

    def add_embodiment(self, name: str, state_dim: int, action_dim: int) -> None:
        """Give the model encoders and a decoder for a further robot; all other weights stay as they are."""
        if name in self.config.embodiments:
            self.config.add_embodiment(name, state_dim, action_dim)  # checks that the dimensions agree
            return
        self.config.add_embodiment(name, state_dim, action_dim)
        coders = EmbodimentCoders(self.config.expert_config.hidden_size, state_dim, action_dim)
        coders.apply(self._init_weights)
        reference = self.expert.image_proj.weight
        self.expert.embodiments[name] = coders.to(device=reference.device, dtype=reference.dtype)

    def _robot_rows(
        self,
        query_states: torch.Tensor,
        input_ids: torch.Tensor | None,
        embodiment_ids: torch.Tensor | None,
        state: torch.Tensor | None,
        expert_pixel_values: torch.Tensor | None,
        expert_view_mask: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Checked inputs of the expert for the samples that have query states, and the index of those samples."""
        count = len(query_states) if input_ids is None else len(input_ids)
        given = {"embodiment_ids": embodiment_ids, "state": state, "expert_pixel_values": expert_pixel_values}
        for name, value in given.items():
            if value is None:
                raise ValueError(
                    f"{name}: missing; the action expert needs it (the processor makes it from state=, images=)"
                )
            if len(value) != count:
                raise ValueError(f"{name}: expected one row for each of the {count} samples, got {len(value)}")
        assert embodiment_ids is not None
        assert state is not None
        assert expert_pixel_values is not None
        if input_ids is None:
            rows = torch.arange(count, device=query_states.device)
        else:
            rows = (input_ids == self.config.query_token_id).any(-1).nonzero().squeeze(1)
        if expert_view_mask is None:
            expert_view_mask = torch.ones(expert_pixel_values.shape[:2], dtype=torch.bool, device=rows.device)
        if expert_pixel_values.shape[1] != len(self.config.views):
            raise ValueError(
                f"expert_pixel_values: expected {len(self.config.views)} views {self.config.views}, got shape "
                f"{tuple(expert_pixel_values.shape)}; pass all views and mark missing ones in expert_view_mask"
            )
        return {
            "rows": rows,
            "state": state[rows],
            "embodiment_ids": embodiment_ids[rows],
            "expert_pixel_values": expert_pixel_values[rows],
            "expert_view_mask": expert_view_mask[rows].bool(),
        }

    def _action_dims(self, embodiment_ids: torch.Tensor) -> torch.Tensor:
        """Action dimensions of each sample's robot, (B,)."""
        dims = torch.zeros_like(embodiment_ids)
        for embodiment in self.config.embodiments.values():
            dims = torch.where(embodiment_ids == embodiment["id"], embodiment["action_dim"], dims)
        return dims

    def _default_action_mask(self, actions: torch.Tensor, embodiment_ids: torch.Tensor) -> torch.Tensor:
        """True at the embodiment's own dimensions, all steps. bool, shape of `actions`."""
        own = torch.arange(actions.shape[-1], device=actions.device) < self._action_dims(embodiment_ids)[:, None]
        return own[:, None, :].expand_as(actions)

    def _full_width(self, name: str, x: torch.Tensor, embodiment_ids: torch.Tensor) -> torch.Tensor:
        """Zero-pad (B, T, D) to the model's widest robot; a processor may know only some of the model's robots."""
        width = self.config.max_action_dim
        if x.shape[-1] == width:
            return x
        least = int(self._action_dims(embodiment_ids).max())
        if not least <= x.shape[-1] < width:
            raise ValueError(
                f"{name}: expected {width} dimensions (zero-padded; at least {least} for these robots), got shape "
                f"{tuple(x.shape)}"
            )
        return F.pad(x, (0, width - x.shape[-1]))

    def _touch_unused(self, acted: bool, saw: bool) -> torch.Tensor:
        """Zero that depends on every weight which the batch left out.

        Data-parallel training waits for each weight's gradient, and sharded training for each module to run, on all
        processes. One whose batch has no robot sample (or no image) therefore runs the expert (or the VLM's image
        encoder) on zeros.
        """
        parts = [p.sum() for p in self.expert.embodiments.parameters() if p.requires_grad]
        if not acted and self.config.embodiments:
            parts.append(self._action_loss_of_zeros())
        if not saw:
            encoder = self.vlm.config.vision_config
            patches = torch.zeros(
                encoder.spatial_merge_size**2,
                encoder.in_channels * encoder.temporal_patch_size * encoder.patch_size**2,
                device=self.vlm.device,
            )
            grid = torch.tensor([[1, encoder.spatial_merge_size, encoder.spatial_merge_size]], device=patches.device)
            features = self.vlm.model.get_image_features(patches, grid, return_dict=True).pooler_output
            parts.append(torch.cat(features).float().sum())
        return sum(0.0 * part for part in parts) + torch.zeros((), device=self.device)

    def _action_loss_of_zeros(self) -> torch.Tensor:
        """One pass of adapter and expert on an empty sample of the first robot."""
        config, device = self.config, self.device
        side = config.expert_image_size
        actions = torch.zeros(1, config.chunk_size, config.max_action_dim, device=device)
        per_sample, _ = self.action_loss(
            torch.zeros(1, config.num_query_tokens, self.action_queries.embedding_dim, device=device),
            actions,
            noise=torch.zeros_like(actions),
            timestep=torch.zeros(1, device=device),
            state=torch.zeros(1, config.max_state_dim, device=device),
            embodiment_ids=torch.full((1,), next(iter(config.embodiments.values()))["id"], device=device),
            expert_pixel_values=torch.zeros(1, len(config.views), 3, side, side, device=device),
            expert_view_mask=torch.ones(1, len(config.views), dtype=torch.bool, device=device),
        )
        return per_sample.sum()


class SyVLAForConditionalGeneration(SyVLAPreTrainedModel, GenerationMixin):
    """The VLM inside a SyVLA checkpoint, for text: questions about images, captions, thoughts.

    Loads the same checkpoint as [`SyVLAModel`] and leaves the action expert on disk. `save_pretrained` writes the VLM as a
    plain checkpoint of its own family.
    """

    _keys_to_ignore_on_load_unexpected = [r"^expert\.", r"^adapter\.", r"^action_queries\."]

    def __init__(self, config: SyVLAConfig) -> None:
        super().__init__(config)
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config)
        use_right_image_positions(self.vlm)
        self.post_init()

    def forward(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """As the VLM's own forward: logits, and a loss when `labels` are given."""
        if input_ids is not None and kwargs.get("mm_token_type_ids") is None:
            kwargs["mm_token_type_ids"] = self._token_types(input_ids)
        return self.vlm(input_ids=input_ids, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        self.vlm.generation_config = self.generation_config
        self.vlm.save_pretrained(save_directory, *args, **kwargs)


def _left_padded(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Move padding to the left, order of the real tokens unchanged."""
    if attention_mask is None:
        return input_ids, torch.ones_like(input_ids)
    order = attention_mask.long().argsort(dim=1, stable=True)
    return input_ids.gather(1, order), attention_mask.gather(1, order)


def _require_complete(info: Any, name: Any, other_shapes: bool) -> None:
    info = info if isinstance(info, dict) else vars(info)
    kinds = {
        "missing_keys": "missing from the checkpoint",
        "unexpected_keys": "in the checkpoint but unknown to the model",
        **({} if other_shapes else {"mismatched_keys": "of another shape"}),
    }
    problems = []
    for key, text in kinds.items():
        names = sorted(str(k[0] if isinstance(k, tuple) else k) for k in info.get(key) or ())
        if names:
            shown = ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")
            problems.append(f"{len(names)} weights {text}: {shown}")
    if problems:
        raise ValueError(
            f"{name}: the checkpoint does not fit the model. {'; '.join(problems)}. "
            "Pass allow_missing_weights=True to load it all the same; missing weights are then initialised at random."
        )
