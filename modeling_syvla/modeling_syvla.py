"""SyVLA: a vision-language model that thinks, N query tokens that read its intention, an expert that acts.

Paper: "Scaling by Diversified Experience for Vision-Language-Action Models", sections 3.1 and 3.2, appendix A.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, GenerationMixin
from transformers.utils import can_return_tuple

from .action_expert import ActionExpert, EncodedObservation, ExpertContext, QueryAdapter
from .advantage_guidance import GuidedExpert, check_advantage_guidance, doubled, require_plain
from .chunked_cross_entropy import token_losses
from .configuration_syvla import SyVLAConfig
from .consistent_design import require_consistent_design
from .denoise_loop import denoise, fixed_context, step_times
from .episode_memory import EpisodeMemory, memory_of_prompts
from .expert_inputs import ActionTarget, ExpertObservation, action_target, own_action_dims, select_rows
from .flow_matching import flow_matching_loss, interpolate
from .flow_solver import FlowSolver
from .guided_flow import check_guidance, guided_sample
from .inference_optimization import InferenceOptimizationMixin
from .intention_decoupling import find_decoupling_mask, first_pass, keep_states, noisy_states
from .known_actions import draw_delays, known_steps, sample_after, velocity_after
from .last_layer import read_in_last_layer
from .model_outputs import SyVLAActionOutput, SyVLAOutput
from .pretrained import SyVLAPreTrainedModel
from .query_states import ThinkingMixin
from .regression_head import RegressionHead, l1_loss
from .resizing import resize_chunk, resize_queries
from .unused_weights import zero_of_unused_weights
from .vlm_positions import use_right_image_positions
from .window_attention import batch_windows
from .wrapped_vlm import FOUND_OUT_HERE, ConditionalGenerationMixin, require_kept, require_read, wanted_states

# Not used here, but by the files above: transformers 5.4 fetches only those files of a checkpoint that its entry file
# imports itself, not what they import in turn. `test_remote_code` says which line is missing or too many.
from .embodiment_fields import EmbodimentsMixin  # noqa: F401  isort: skip
from .robot_encoders import apply_per_embodiment  # noqa: F401  isort: skip
from .inference_linear import FusedProjections  # noqa: F401  isort: skip
from .own_fields import OwnModelTypeMixin  # noqa: F401  isort: skip
from .packed_weights import PackedLinear  # noqa: F401  isort: skip
from .padding_free import FlattenedBatch  # noqa: F401  isort: skip
from .static_thoughts import StaticThoughts  # noqa: F401  isort: skip


class SyVLAModel(ThinkingMixin, InferenceOptimizationMixin, SyVLAPreTrainedModel, GenerationMixin):
    """The whole policy: VLM, Feature Query Tokens, adapter and action expert."""

    reentrant_checkpointing = False

    def __init__(self, config: SyVLAConfig) -> None:
        super().__init__(config)
        require_consistent_design(config)
        vlm_width = config.vlm_config.get_text_config().hidden_size
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config)
        use_right_image_positions(self.vlm)
        batch_windows(self.vlm)
        read_in_last_layer(self.vlm)
        self.action_queries = nn.Embedding(config.num_query_tokens, vlm_width)  # Feature Query Tokens
        self.adapter = QueryAdapter(vlm_width, config.expert_config.hidden_size)
        self.expert: Any = RegressionHead(config) if config.action_head == "l1_regression" else ActionExpert(config)
        self.name_tied_weights()
        self.tokenizer: Any = None  # set it, or let `predict_actions` load it from the checkpoint, to read thoughts
        self.post_init()
        # Sharded training looks for every class named here: with another VLM or head some are absent.
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = [name for name in self._no_split_modules or () if name in present]

    # ------------------------------------------------------------------ training

    def lm_losses(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy on the label tokens only, summed per sample, float32 (B,), and their numbers (B,).

        Logits are computed at those positions alone, and of many tokens a part at a time.
        """
        target = labels[:, 1:]
        keep = target != -100
        losses = token_losses(self.get_output_embeddings(), hidden[:, :-1][keep], target[keep])  # (labeled tokens,)
        sums = losses.new_zeros(len(labels)).index_add(0, keep.nonzero()[:, 0], losses)
        return sums, keep.sum(dim=-1)

    def lm_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the label tokens. Scalar, float32."""
        sums, counts = self.lm_losses(hidden, labels)
        return sums.sum() / counts.sum().clamp(min=1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
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
        delay: torch.Tensor | None = None,
        robot_samples: float | None = None,
        answer_tokens: float | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SyVLAOutput:
        """Losses of a batch that may mix robot samples with multi-modal ones.

        Args:
            input_ids, attention_mask, mm_token_type_ids: (B, L); robot samples hold N query placeholders.
            pixel_values, image_grid_thw: Images of the VLM, as Qwen2.5-VL takes them.
            labels: (B, L), -100 where no text is to be learned.
            state: Normalized, zero-padded, (B, D_state_max).
            embodiment_ids: (B,), -1 for samples without actions.
            actions: Normalized, zero-padded, (B, T, D_action_max).
            action_mask: bool (B, T, D_action_max), True where real. None: all steps, the embodiment's dimensions.
            expert_pixel_values: (B, V, 3, h, w); expert_view_mask: bool (B, V), None: all views present.
            noise, timestep: Flow noise (B, T, D_action_max) and time (B,); drawn when not given.
            delay: First actions of each chunk that stand there clean and are not trained, int (B,), up to the config's
                `simulated_delay`. None: drawn in training, none otherwise.
            robot_samples, answer_tokens: What the sums of both losses are divided by; None: their numbers in this batch.
                A trainer that splits a batch passes those of the whole, so that the parts' losses add up to its loss.
            output_hidden_states, output_attentions: Whether to return those of the language model's layers; None: what the
                configuration says.
            kwargs: `return_dict=False` for a tuple.

        Returns:
            [`SyVLAOutput`].

        Raises:
            TypeError: If an argument is unknown.
            ValueError: If an argument cannot be honored; the message says why.
        """
        require_read(type(self).__name__, kwargs, refused=FOUND_OUT_HERE)
        if input_ids is None:
            raise ValueError("input_ids: SyVLAModel needs the tokens of the prompts, (B, L), got None")
        wanted = require_kept(self, wanted_states(self.config, output_hidden_states, output_attentions))
        encoded = self.run_vlm(input_ids, attention_mask, mm_token_type_ids, pixel_values, image_grid_thw, **wanted)
        hidden = encoded.last_hidden_state
        query_states = self.select_query_states(hidden, input_ids)
        output = SyVLAOutput(query_states=query_states)
        output.hidden_states, output.attentions = encoded.hidden_states, encoded.attentions
        losses = []
        if labels is not None:
            output.lm_loss_sums, output.label_tokens = self.lm_losses(hidden, labels)
            tokens = output.label_tokens.sum().clamp(min=1) if answer_tokens is None else answer_tokens
            output.lm_loss = output.lm_loss_sums.sum() / tokens
            losses.append(self.config.lm_loss_weight * output.lm_loss)
        if actions is not None:
            observation = ExpertObservation.checked(
                self.config, len(input_ids), state, embodiment_ids, expert_pixel_values, expert_view_mask
            )
            rows = (input_ids == self.config.query_token_id).any(-1).nonzero().squeeze(1)  # (R,), the robot samples
            output.action_loss = torch.zeros((), device=hidden.device)
            if len(rows):
                states, condition_mask = self.condition_states(hidden, input_ids, attention_mask)
                per_sample, output.query_mask = self.action_loss(
                    states,
                    observation.select(rows),
                    actions[rows],
                    select_rows(action_mask, rows),
                    select_rows(noise, rows),
                    select_rows(timestep, rows),
                    condition_mask,
                    select_rows(delay, rows),
                )
                output.action_loss_per_sample = per_sample
                output.action_loss = per_sample.sum() / (robot_samples or len(per_sample))
            losses.append(self.config.action_loss_weight * output.action_loss)
        if losses:
            output.loss = cast("torch.Tensor", sum(losses))  # the 0 of no losses is excluded above
            if self.training:
                # Distributed training waits for a gradient of every weight. Those that this batch does not use (another
                # robot's coders, the expert in a batch of chats) get one of 0.
                acted = output.action_loss_per_sample is not None
                output.loss = output.loss + zero_of_unused_weights(self, acted, pixel_values is not None)
        return output

    def action_loss(
        self,
        query_states: torch.Tensor,
        observation: ExpertObservation,
        actions: torch.Tensor,
        action_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        condition_mask: torch.Tensor | None = None,
        delay: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Flow-matching loss per sample, with Intention Decoupling when training; L1 loss with that action head.

        Args:
            query_states, condition_mask: From `condition_states`.
            observation, actions, action_mask, noise, timestep, delay: As in `forward`, robot samples only.

        Returns:
            (loss float32 (R,), mask of kept query states bool (R, N) or None when decoupling is off or in evaluation).
        """
        # Noise and time are drawn once, for both passes: the mask answers for the very loss that is then minimized.
        if delay is None and self.training and self.config.simulated_delay:
            delay = draw_delays(len(actions), self.config)
        target = action_target(self.config, observation.embodiment_ids, actions, action_mask, noise, timestep, delay)
        encoded = self.expert.encode_observation(observation)
        mask = None
        trains = self.training and torch.is_grad_enabled()
        if trains and self.config.query_noise:
            query_states = noisy_states(query_states, self.config.query_noise)
        if trains and self.config.intention_decoupling:
            # First pass, only to ask how strongly the loss depends on each query state. Query states and encoded images are
            # detached: the backward of this pass stops at the probe and runs neither through the VLM nor through the vision
            # tower, and no weight gets a gradient of it.
            probe = query_states.detach().requires_grad_()
            config = self.config
            settings = (config.decoupling_quantile, config.decoupling_scope, config.decoupling_choice)
            with first_pass(self):
                loss = self.loss_of_states(probe, encoded.detach(), target, condition_mask)
                mask = find_decoupling_mask(loss, probe, *settings)  # (R, N)
            # Second pass, the one that trains: states that the action hardly depends on are zeroed, the others still lead back
            # into the VLM.
            query_states = keep_states(query_states, mask)
        return self.loss_of_states(query_states, encoded, target, condition_mask), mask

    def loss_of_states(
        self,
        query_states: torch.Tensor,
        encoded: EncodedObservation,
        target: ActionTarget,
        condition_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One pass over the action head: its loss per sample, float32 (R,)."""
        condition = self.condition(query_states)
        if target.noise is None or target.timestep is None:
            return l1_loss(self.expert(condition, encoded.observation), target.actions, target.mask)
        context = self.expert.encode_context(encoded, condition, condition_mask)
        # Time runs from noise (t = 0) to actions (t = 1), so the velocity that is learned is actions - noise and the sampler
        # adds it. openpi counts time the other way round, with the opposite sign.
        noisy_actions = interpolate(target.noise, target.actions, target.timestep)  # x_t in the paper
        if target.known is None:
            velocity = self.expert.predict_velocity(noisy_actions, target.timestep, context, target.attended)
        else:
            noisy_actions = torch.where(target.known[..., None], target.actions, noisy_actions)
            known = (target.known, target.attended)
            velocity = velocity_after(self.expert, noisy_actions, target.timestep, context, *known)
        return flow_matching_loss(velocity, target.noise, target.actions, target.mask)

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
        think_budget: float | None = None,
        memory: EpisodeMemory | None = None,
        num_steps: int | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        query_states: torch.Tensor | None = None,
        condition_mask: torch.Tensor | None = None,
        continuation: tuple[torch.Tensor, torch.Tensor] | None = None,
        max_guidance_weight: float | None = None,
        known_actions: tuple[torch.Tensor, torch.Tensor] | None = None,
        advantage_guidance: float | None = None,
        plain_input_ids: torch.Tensor | None = None,
        plain_attention_mask: torch.Tensor | None = None,
        plain_query_states: torch.Tensor | None = None,
        tokenizer: Any = None,
        **generate_kwargs: Any,
    ) -> SyVLAActionOutput:
        """Action chunks for a batch of observations, with or without a thought first.

        Args:
            input_ids ... expert_view_mask: What the processor returns for observations (no actions, no thought), padded
                on either side. A prompt that already ends in query tokens is taken as it is.
            think: Generate a chain of thought and append the queries to its key/value cache.
            max_new_tokens: Limit of the thought; a thought that is cut gets the end token it was trained with.
            think_budget: Limit of the thought in seconds of wall time, checked after every token.
            memory: What the VLM's last call of this episode left, so that this one takes less; for one sample, see
                `episode_memory`.
            num_steps: Evaluations of the flow; None: `config.num_inference_steps`. See `flow_solver.FlowSolver`.
            noise: Initial noise (B, chunk_size, D_action_max), else drawn from `generator`; regression needs none.
            query_states: Skip the VLM and act on these states, (B, N, D_vlm) (asynchronous use, section 3.1).
            condition_mask: That of the output which gave these states; None where all are real.
            continuation: Normalized actions (B, chunk_size, D_action_max) that the chunk shall continue, and how strongly
                at each step (B, chunk_size); see `flow_solver.continued`.
            max_guidance_weight: Continue by the guidance of `guided_flow.guided_sample`, clipped at this number, which
                takes a backward pass through the expert at each flow step; None: the form without gradients.
            known_actions: Normalized actions (B, chunk_size, D_action_max), and how many first ones of each will run while the
                chunk is computed, int (B,); for models that were trained with `simulated_delay`. They come back as given.
            advantage_guidance: Weight of `advantage_guidance.GuidedExpert`, for models that were trained with an advantage
                indicator; None or 1: the prompt's indicator alone. Not together with `think`.
            plain_input_ids, plain_attention_mask: With another weight, the same prompts without the indicator, which the
                processor makes with `advantage="none"`; in place of them `plain_query_states` where `query_states` are given.
            tokenizer: Turns thoughts into text; None: `self.tokenizer`, else the one saved with the checkpoint.
            generate_kwargs: Further arguments of `generate` for the thought, such as `do_sample`, `stopping_criteria` or a
                `streamer` (one sample at a time).

        Returns:
            [`SyVLAActionOutput`].
        """
        thought_ids = thoughts = None
        check_advantage_guidance(self, advantage_guidance)
        if query_states is None:
            if input_ids is None:
                raise ValueError("predict_actions: expected input_ids (and images) or query_states, got neither")
            require_plain(advantage_guidance, plain_input_ids, "plain_input_ids", think)
            if plain_input_ids is not None:  # two prompts that differ in their last words
                memory = memory or memory_of_prompts(self, len(input_ids))
            query_states, condition_mask, thoughts, thought_ids = self.predict_query_states(
                input_ids,
                attention_mask,
                pixel_values,
                image_grid_thw,
                think=think,
                max_new_tokens=max_new_tokens,
                think_budget=think_budget,
                memory=memory,
                tokenizer=tokenizer,
                **generate_kwargs,
            )
            if plain_input_ids is not None:
                plain = (plain_input_ids, plain_attention_mask, pixel_values, image_grid_thw)
                plain_query_states = self.predict_query_states(*plain, memory=memory)[0]
        else:
            given = {**generate_kwargs, "memory": memory}
            self._require_no_thought_arguments(given, think_budget, "leave query_states out", think)
        observation = ExpertObservation.checked(
            self.config, len(query_states), state, embodiment_ids, expert_pixel_values, expert_view_mask
        )
        actions = self.sample_actions(
            query_states,
            observation,
            num_steps=num_steps,
            noise=noise,
            generator=generator,
            condition_mask=condition_mask,
            continuation=continuation,
            max_guidance_weight=max_guidance_weight,
            known_actions=known_actions,
            advantage_guidance=advantage_guidance,
            plain_query_states=plain_query_states,
        )
        return SyVLAActionOutput(actions, thoughts, thought_ids, query_states, condition_mask)

    @torch.no_grad()
    def sample_actions(
        self,
        query_states: torch.Tensor,
        observation: ExpertObservation,
        *,
        num_steps: int | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        condition_mask: torch.Tensor | None = None,
        continuation: tuple[torch.Tensor, torch.Tensor] | None = None,
        max_guidance_weight: float | None = None,
        known_actions: tuple[torch.Tensor, torch.Tensor] | None = None,
        advantage_guidance: float | None = None,
        plain_query_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Denoise chunks on given query states; the expert's context is computed once. float32 (B, T, D_action_max)."""
        if advantage_guidance is not None or plain_query_states is not None:
            check_advantage_guidance(self, advantage_guidance)
            require_plain(advantage_guidance, plain_query_states, "plain_query_states")
        if continuation is not None:
            continuation = (continuation[0].float(), continuation[1].float()[..., None])
        if max_guidance_weight is not None:
            check_guidance(self, continuation)
        if known_actions is not None and (continuation is not None or not self.config.simulated_delay):
            raise ValueError(
                "known_actions: expected without continuation, and a model that was trained with simulated_delay above 0, "
                f"got {self.config.simulated_delay}; take continuation instead"
            )
        if self.config.action_head == "l1_regression":
            actions = self.expert(self.condition(query_states), observation).float()
            return actions if continuation is None else torch.lerp(actions, *continuation)
        shape = (len(query_states), self.config.chunk_size, self.config.max_action_dim)
        if noise is None:
            noise = torch.randn(shape, device=query_states.device, dtype=torch.float32, generator=generator)
        elif tuple(noise.shape) != shape:
            raise ValueError(
                f"noise: expected shape {shape} (batch, chunk_size, max_action_dim), got {tuple(noise.shape)}"
            )
        expert: Any = self.expert
        if plain_query_states is not None and advantage_guidance is not None:
            expert = GuidedExpert(expert, advantage_guidance)
            query_states = torch.cat((query_states, plain_query_states))
        guided = isinstance(expert, GuidedExpert)
        context = self.encode_expert_context(query_states, observation, condition_mask, twice=guided)
        solver = FlowSolver.of(self.config, num_steps)
        if known_actions is not None:
            given, delay = known_actions
            known = known_steps(delay, self.config, torch.ones_like(given[..., 0], dtype=torch.bool))
            actions = sample_after(expert, noise.float(), context, solver, given.float(), known)
        elif continuation is not None and max_guidance_weight is not None:
            flow = partial(expert.predict_velocity, context=context)
            actions = guided_sample(flow, noise.float(), solver, continuation, max_guidance_weight)
        elif self.compiled_denoising is None:
            times = step_times(self.expert, solver, noise.device)
            context = fixed_context(self.expert, context, shape[1])
            actions = denoise(expert, noise.float(), times, context, solver, continuation)
        else:
            times = step_times(self.expert, solver, noise.device)
            actions = self.compiled_denoising(self.expert, noise.float(), times, context, solver, continuation)
        return torch.where(own_action_dims(self.config, actions, observation.embodiment_ids), actions, 0.0)

    def encode_expert_context(
        self,
        query_states: torch.Tensor,
        observation: ExpertObservation,
        condition_mask: torch.Tensor | None = None,
        twice: bool = False,
    ) -> ExpertContext:
        """All that the flow steps of one observation share; `twice`: 2 B query states for B observations."""
        encoded = self.expert.encode_observation(observation)
        encoded = doubled(encoded) if twice else encoded
        context: ExpertContext = self.expert.encode_context(encoded, self.condition(query_states), condition_mask)
        return context

    def condition(self, query_states: torch.Tensor) -> torch.Tensor:
        """Control condition C = Adapter(H). query_states: H in the paper, (B, N, D_vlm) -> (B, N, D)."""
        condition: torch.Tensor = self.adapter(query_states.to(cast("nn.Linear", self.adapter[0]).bias.dtype))
        return condition

    # ------------------------------------------------------------------ batches and embodiments

    def add_embodiment(self, name: str, state_dim: int, action_dim: int) -> None:
        """Give the model encoders and a decoder for a further robot; all other weights stay as they are."""
        if name in self.config.embodiments:
            self.config.add_embodiment(name, state_dim, action_dim)  # checks that the dimensions agree
            return
        self.config.add_embodiment(name, state_dim, action_dim)
        coders = self.expert.coders(self.config.expert_config.hidden_size, state_dim, action_dim)
        coders.apply(self._init_weights)
        self.expert.embodiments[name] = coders.to(self.adapter[0].bias)  # its device and dtype

    def resize_chunk(self, chunk_size: int) -> None:
        """Predict chunks of another length from now on; see `resizing.resize_chunk`. Set the processor's as well."""
        resize_chunk(self, chunk_size)

    def resize_queries(self, num_query_tokens: int) -> None:
        """Use another number of Feature Query Tokens; see `resizing.resize_queries`. Set the processor's as well."""
        resize_queries(self, num_query_tokens)

    @classmethod
    def from_vlm(cls, vlm: Any, vision_tower: Any = None, **options: Any) -> Any:
        """A model out of pretrained parts, with a fresh expert; see `assemble.from_vlm`.

        Args:
            vlm: Folder, Hub id or model of the Qwen2.5-VL family.
            vision_tower: Folder, Hub id or model of the expert's image encoder (SigLIP); None: a fresh one.
            options: `embodiments`, `config_overrides`, `dtype`, `seed` and others of `assemble.from_vlm`.
        """
        try:  # by name, so that the code of assembling does not travel with every checkpoint
            assemble = import_module(".assemble", __package__)
        except ModuleNotFoundError as error:
            raise ImportError(
                "from_vlm needs the installed package; a checkpoint's own code can only load it"
            ) from error
        return assemble.from_vlm(vlm, vision_tower, model_class=cls, **options)


class SyVLAForConditionalGeneration(ConditionalGenerationMixin, SyVLAPreTrainedModel, GenerationMixin):
    """The VLM inside a SyVLA checkpoint, for text: questions about images, captions, thoughts.

    Loads the same checkpoint as [`SyVLAModel`] and leaves the action expert on disk. `save_pretrained` writes what this
    class reads; for a plain checkpoint of the VLM's own family there are `export_vlm` and `model.vlm.save_pretrained`.
    """

    _keys_to_ignore_on_load_unexpected = [r"^expert\.", r"^adapter\.", r"^action_queries\."]

    def __init__(self, config: SyVLAConfig) -> None:
        super().__init__(config)
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config)
        use_right_image_positions(self.vlm)
        batch_windows(self.vlm)
        self.name_tied_weights()
        self.post_init()
