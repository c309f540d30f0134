"""The flow-matching action expert (paper, section 3.1 and appendix A).

Sequence: prefix = [image tokens of all views, state], suffix = [timestep, noisy actions]. The mask is block-causal: the
prefix attends to itself only, the suffix to everything. The prefix therefore never changes during denoising; its keys and
values, and those of the control condition, are computed once per observation (`encode_context`) and every flow step runs
the suffix alone (`predict_velocity`). Training takes the same two calls, so cached and uncached cannot differ.

The sequence has fixed slots, so learned embeddings name view and chunk step; no rotary embedding is needed (ours).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_syvla import SyVLAConfig, SyVLAExpertConfig
from .expert_inputs import ExpertObservation
from .inference_linear import FusedProjections
from .robot_encoders import (
    EmbodimentCoders,
    Route,
    all_rows,
    apply_routed,
    embodiment_route,
    encode_views,
    feature_width,
    make_mlp,
    make_vision_tower,
    project_views,
)

KeyValue = tuple[torch.Tensor, torch.Tensor]  # keys and values, each (B, heads, tokens, head_dim)


@dataclass(frozen=True)
class EncodedObservation:
    """An observation after the image encoder: all that does not depend on the control condition.

    Attributes:
        observation: Where the rest comes from.
        image_features: (B, V, tokens per view, tower width).
        prefix: Per layer, keys and values of the prefix tokens; None where they depend on the condition, as they do with
            `cross_attention_scope="all"`.
    """

    observation: ExpertObservation
    image_features: torch.Tensor
    prefix: list[KeyValue] | None

    def detach(self) -> EncodedObservation:
        """The same values without their history, so that no gradient reaches the image encoder or the prefix."""
        prefix = None if self.prefix is None else [(keys.detach(), values.detach()) for keys, values in self.prefix]
        return EncodedObservation(self.observation, self.image_features.detach(), prefix)


@dataclass
class ExpertContext:
    """All that a flow step needs besides the noisy actions; constant over the steps of one observation.

    Attributes:
        prefix: Per layer, keys and values of the prefix tokens.
        condition: Per layer, keys and values of the control condition C.
        prefix_mask: bool (B, P), True for real prefix tokens.
        embodiment_ids: (B,).
        condition_mask: bool (B, 1, 1, N), True for real states of the condition; None where all are.
        buffers: Per layer, keys and values of prefix and suffix, (B, heads, P + 1 + T, head_dim); only while denoising,
            where every flow step writes those of the suffix in place, so that the prefix's are never copied again.
        mask: bool (B, 1, 1, P + 1 + T), what the suffix attends to; None where all is real. Only with `buffers`.
        route: Which MLPs each robot takes; None: found from `embodiment_ids` when needed.
    """

    prefix: list[KeyValue]
    condition: list[KeyValue]
    prefix_mask: torch.Tensor
    embodiment_ids: torch.Tensor
    condition_mask: torch.Tensor | None = None
    buffers: list[KeyValue] | None = None
    mask: torch.Tensor | None = None
    route: Route | None = None

    def with_buffers(self, suffix_tokens: int) -> ExpertContext:
        """For flow steps over `suffix_tokens` tokens without gradient; `mask` and `route` stay as they are."""
        buffers = []
        for key_value in self.prefix:
            whole = []
            for own in key_value:
                batch, heads, tokens, head_dim = own.shape
                buffer = own.new_empty(batch, heads, tokens + suffix_tokens, head_dim)
                buffer[:, :, :tokens] = own
                whole.append(buffer)
            buffers.append((whole[0], whole[1]))
        return replace(self, buffers=buffers)


class ExpertRMSNorm(nn.RMSNorm):
    """RMSNorm in float32, returned in the input's dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).to(x.dtype) if x.dtype != self.weight.dtype else super().forward(x)


class ExpertAttention(nn.Module):
    """Multi-head attention whose keys and values are projected apart from its queries, so that they can be kept."""

    def __init__(self, config: SyVLAExpertConfig) -> None:
        super().__init__()
        inner = config.num_attention_heads * config.head_dim
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)
        self.fused: FusedProjections | None = None

    def fuse(self, *names: str) -> None:
        """Make one product of these projections: keys and values, or all three where they read the same tokens."""
        self.fused = FusedProjections(self, *names)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, tokens, head_dim)
        return heads

    def key_value(self, x: torch.Tensor) -> KeyValue:
        if self.fused is not None and len(self.fused.names) == 2 and self.fused.usable():
            keys, values = self.fused(x).chunk(2, dim=-1)
            return self._heads(keys), self._heads(values)
        return self._heads(self.k_proj(x)), self._heads(self.v_proj(x))

    def query_key_value(self, x: torch.Tensor) -> tuple[torch.Tensor, KeyValue]:
        """Queries, and keys and values, of the same tokens."""
        if self.fused is not None and len(self.fused.names) == 3 and self.fused.usable():
            queries, keys, values = self.fused(x).chunk(3, dim=-1)
            return self._heads(queries), (self._heads(keys), self._heads(values))
        return self._heads(self.q_proj(x)), self.key_value(x)

    def attend(self, queries: torch.Tensor, key_value: KeyValue, mask: torch.Tensor | None = None) -> torch.Tensor:
        """queries: (B, heads, Q, head_dim); mask: bool, broadcastable to (B, heads, Q, K), True = attend. (B, Q, D)"""
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(queries, *key_value, attn_mask=mask, dropout_p=dropout)
        attended: torch.Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return attended

    def forward(self, x: torch.Tensor, key_value: KeyValue, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x: (B, Q, D); mask: as in `attend`."""
        return self.attend(self._heads(self.q_proj(x)), key_value, mask)


class ExpertMLP(nn.Module):
    def __init__(self, config: SyVLAExpertConfig) -> None:
        super().__init__()
        width = config.mlp_hidden_size
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=False) if config.mlp_type == "swiglu" else None
        self.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.fused: FusedProjections | None = None

    def fuse(self) -> None:
        """Make one product of gate and up projection, where there is a gate."""
        if self.gate_proj is not None:
            self.fused = FusedProjections(self, "gate_proj", "up_proj")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused is not None and self.fused.usable():
            gate, up = self.fused(x).chunk(2, dim=-1)
            narrowed: torch.Tensor = self.down_proj(F.silu(gate) * up)
            return narrowed
        up = self.up_proj(x)
        out: torch.Tensor = self.down_proj(F.gelu(up) if self.gate_proj is None else F.silu(self.gate_proj(x)) * up)
        return out


class ExpertLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention to the control condition, MLP; pre-norm."""

    def __init__(self, config: SyVLAExpertConfig) -> None:
        super().__init__()
        self.self_attn_norm = ExpertRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = ExpertAttention(config)
        self.cross_attn_norm = ExpertRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.cross_attn = ExpertAttention(config)
        self.mlp_norm = ExpertRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = ExpertMLP(config)

    def fuse(self) -> None:
        """For inference; see `FusedProjections`."""
        self.self_attn.fuse("q_proj", "k_proj", "v_proj")
        self.cross_attn.fuse("k_proj", "v_proj")
        self.mlp.fuse()

    def forward(self, method: str, *args: Any) -> Any:
        """Runs one of the methods `_project_...` and `_run_...`; call their public namesakes.

        They go through here because sharded training gathers a layer's weights, and gradient checkpointing drops its
        activations, around a call of the module only.
        """
        return getattr(self, method)(*args)

    def project_condition(self, condition: torch.Tensor) -> KeyValue:
        """Keys and values of the control condition C for cross-attention. condition: (B, N, D)."""
        projected: KeyValue = self("_project_condition", condition)
        return projected

    def project_prefix(self, x: torch.Tensor) -> KeyValue:
        """Keys and values of the prefix for self-attention, and nothing else. x: (B, P, D)."""
        projected: KeyValue = self("_project_prefix", x)
        return projected

    def run_prefix(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        condition: KeyValue | None,
        condition_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, KeyValue]:
        """Run the prefix tokens through the layer.

        Args:
            x: (B, P, D).
            mask: bool (B, 1, 1, P), True = attend; None attends to everything.
            condition: Keys and values from `project_condition`; None skips cross-attention.
            condition_mask: bool (B, 1, 1, N); None attends to all of the condition.

        Returns:
            (tokens (B, P, D), their keys and values for self-attention).
        """
        result: tuple[torch.Tensor, KeyValue] = self("_run_prefix", x, mask, condition, condition_mask)
        return result

    def run_suffix(
        self,
        x: torch.Tensor,
        prefix: KeyValue,
        mask: torch.Tensor,
        condition: KeyValue,
        condition_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run the suffix tokens through the layer.

        Args:
            x: (B, S, D).
            prefix: Keys and values of the prefix, from `run_prefix`.
            mask: bool (B, 1, 1, P + S), True = attend.
            condition, condition_mask: See `run_prefix`.

        Returns:
            (B, S, D).
        """
        out: torch.Tensor = self("_run_suffix", x, prefix, mask, condition, condition_mask)
        return out

    def run_suffix_in_place(
        self,
        x: torch.Tensor,
        buffer: KeyValue,
        mask: torch.Tensor | None,
        condition: KeyValue,
        condition_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `run_suffix`, without a copy of the prefix; not differentiable.

        Args:
            buffer: Keys and values of prefix and suffix, (B, heads, P + S, head_dim). Those of `x` are written to its end.
            mask: None attends to everything.
        """
        out: torch.Tensor = self("_run_suffix_in_place", x, buffer, mask, condition, condition_mask)
        return out

    def _project_condition(self, condition: torch.Tensor) -> KeyValue:
        return self.cross_attn.key_value(condition)

    def _project_prefix(self, x: torch.Tensor) -> KeyValue:
        return self.self_attn.key_value(self.self_attn_norm(x))

    def _run_prefix(self, x: torch.Tensor, mask: Any, condition: Any, condition_mask: Any) -> Any:
        queries, own = self.self_attn.query_key_value(self.self_attn_norm(x))
        return self._attend(x, queries, own, mask, condition, condition_mask), own

    def _run_suffix(self, x: torch.Tensor, prefix: KeyValue, mask: Any, condition: Any, condition_mask: Any) -> Any:
        queries, own = self.self_attn.query_key_value(self.self_attn_norm(x))
        attended = (torch.cat((prefix[0], own[0]), dim=2), torch.cat((prefix[1], own[1]), dim=2))
        return self._attend(x, queries, attended, mask, condition, condition_mask)

    def _run_suffix_in_place(
        self, x: torch.Tensor, buffer: KeyValue, mask: Any, condition: Any, condition_mask: Any
    ) -> Any:
        queries, own = self.self_attn.query_key_value(self.self_attn_norm(x))
        for whole, part in zip(buffer, own, strict=True):
            whole[:, :, -x.shape[1] :] = part
        return self._attend(x, queries, buffer, mask, condition, condition_mask)

    def _attend(
        self,
        x: torch.Tensor,
        queries: torch.Tensor,
        attended: KeyValue,
        mask: torch.Tensor | None,
        condition: KeyValue | None,
        condition_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        x = x + self.self_attn.attend(queries, attended, mask)  # (B, tokens, D)
        if condition is not None:
            x = x + self.cross_attn(self.cross_attn_norm(x), condition, condition_mask)
        out: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class ActionExpert(nn.Module):
    """Predicts the velocity of a noisy action chunk from low-resolution images, state and the control condition."""

    coders = EmbodimentCoders

    def __init__(self, config: SyVLAConfig) -> None:
        super().__init__()
        expert = config.expert_config
        hidden = expert.hidden_size
        self.config = config
        self.vision_tower = make_vision_tower(config.expert_vision_config)
        self.image_proj = nn.Linear(feature_width(config.expert_vision_config), hidden)
        self.view_embedding = nn.Embedding(len(config.views), hidden)
        self.action_position_embedding = nn.Embedding(config.chunk_size, hidden)
        self.time_mlp = make_mlp(hidden, hidden, hidden)
        self.embodiments = nn.ModuleDict(
            {name: EmbodimentCoders(hidden, e["state_dim"], e["action_dim"]) for name, e in config.embodiments.items()}
        )
        layers = nn.ModuleList(ExpertLayer(expert) for _ in range(expert.num_hidden_layers))
        self.layers = cast("Sequence[ExpertLayer]", layers)  # a ModuleList by its annotations forgets of what
        self.norm = ExpertRMSNorm(hidden, eps=expert.rms_norm_eps)

    # ------------------------------------------------------------------ once per observation

    def encode_images(self, pixel_values: torch.Tensor, view_mask: torch.Tensor) -> torch.Tensor:
        """Features of all views in one tower call.

        Args:
            pixel_values: (B, V, 3, h, w).
            view_mask: bool (B, V); pixels of missing views are replaced by zeros, whatever they hold.

        Returns:
            (B, V, tokens per view, tower width).
        """
        return encode_views(self.vision_tower, pixel_values, view_mask, self.image_proj.bias.dtype)

    def encode_observation(self, observation: ExpertObservation) -> EncodedObservation:
        """Image features, and the prefix if the design lets no token of it attend to the control condition."""
        features = self.encode_images(observation.pixel_values, observation.view_mask)
        prefix = None
        if self.config.expert_config.cross_attention_scope == "suffix":
            prefix = self.encode_prefix(features, observation, [None] * len(self.layers))
        return EncodedObservation(observation, features, prefix)

    def encode_prefix(
        self,
        image_features: torch.Tensor,
        observation: ExpertObservation,
        conditions: Sequence[KeyValue | None],
        condition_mask: torch.Tensor | None = None,
    ) -> list[KeyValue]:
        """Run the prefix [image tokens, state] through the layers and keep its keys and values.

        Args:
            image_features: From `encode_images`, (B, V, P, width).
            observation: State, robot and present views.
            conditions: Per layer, keys and values of the control condition, or None to skip cross-attention.
            condition_mask: bool (B, 1, 1, N); None attends to all of the condition.
        """
        state, hidden = observation.state, self.config.expert_config.hidden_size
        views = all_rows(self.view_embedding, state.device)[:, None, :]  # (V, 1, D)
        images = project_views(self.image_proj, image_features) + views  # (B, V, P, D)
        route = self.route(observation.embodiment_ids)
        state_token = self._routed("state_encoder", state[:, None, :], route, hidden)  # (B, 1, D)
        x = torch.cat((images.flatten(1, 2), state_token), dim=1)  # (B, V * P + 1, D)
        mask = _prefix_mask(observation.view_mask, image_features.shape[2])[:, None, None, :]
        prefix = []
        for layer, condition in zip(self.layers[:-1], conditions[:-1], strict=True):
            x, own = layer.run_prefix(x, mask, condition, condition_mask)
            prefix.append(own)
        # Nothing reads the prefix after the last layer, so that one stops at its keys and values.
        prefix.append(self.layers[-1].project_prefix(x))
        return prefix

    def encode_context(
        self, encoded: EncodedObservation, condition: torch.Tensor, condition_mask: torch.Tensor | None = None
    ) -> ExpertContext:
        """Keys and values of prefix and control condition for every layer.

        Args:
            encoded: From `encode_observation`.
            condition: C in the paper, (B, N, D).
            condition_mask: bool (B, N), True for real states of the condition; None where all are.
        """
        mask = None if condition_mask is None else condition_mask[:, None, None, :]
        conditions = [layer.project_condition(condition) for layer in self.layers]
        observation, prefix = encoded.observation, encoded.prefix
        if prefix is None:
            prefix = self.encode_prefix(encoded.image_features, observation, conditions, mask)
        prefix_mask = _prefix_mask(observation.view_mask, encoded.image_features.shape[2])
        return ExpertContext(prefix, conditions, prefix_mask, observation.embodiment_ids, mask)

    # ------------------------------------------------------------------ once per flow step

    def predict_velocity(
        self,
        noisy_actions: torch.Tensor,
        timestep: torch.Tensor,
        context: ExpertContext,
        attended: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Velocity of the flow at (noisy_actions, timestep).

        Args:
            noisy_actions: x_t, (B, T, D_action_max); dimensions beyond the embodiment's own are ignored.
            timestep: (B,), 0 = noise, 1 = action.
            context: From `encode_context`.
            attended: bool (B, T), steps that the other steps attend to; None: all.

        Returns:
            (B, T, D_action_max), zero beyond the embodiment's own dimensions.
        """
        return self.velocity_at(noisy_actions, self.encode_times(timestep), context, attended)

    def encode_times(self, timestep: torch.Tensor) -> torch.Tensor:
        """Timestep tokens. (B,) -> (B, D)"""
        encoded: torch.Tensor = self.time_mlp(self._time_embedding(timestep).to(self.image_proj.bias.dtype))
        return encoded

    def velocity_at(
        self,
        noisy_actions: torch.Tensor,
        time: torch.Tensor,
        context: ExpertContext,
        attended: torch.Tensor | None = None,  # needs no buffers
        later: torch.Tensor | None = None,  # (B, T, D)
    ) -> torch.Tensor:
        """As `predict_velocity`, with the timestep's token at hand, (B, D) or (1, D), and what single steps add to it."""
        steps = noisy_actions.shape[1]
        if steps > self.config.chunk_size:
            raise ValueError(f"actions: expected at most chunk_size={self.config.chunk_size} steps, got {steps}")
        route = self.route(context.embodiment_ids) if context.route is None else context.route
        hidden = self.config.expert_config.hidden_size
        actions = self._routed("action_encoder", noisy_actions, route, hidden)
        actions = actions + all_rows(self.action_position_embedding, actions.device)[:steps]
        if later is not None:
            actions = actions + later
        x = torch.cat((time[:, None, :].expand(len(actions), -1, -1), actions), dim=1)  # (B, 1 + T, D)
        if context.buffers is None:
            mask = F.pad(context.prefix_mask, (0, steps + 1), value=True)
            if attended is not None:
                mask = torch.cat((mask[:, :-steps], attended), dim=1)
            mask = mask[:, None, None, :]
            for layer, prefix, condition in zip(self.layers, context.prefix, context.condition, strict=True):
                x = layer.run_suffix(x, prefix, mask, condition, context.condition_mask)
        else:
            for layer, buffer, condition in zip(self.layers, context.buffers, context.condition, strict=True):
                x = layer.run_suffix_in_place(x, buffer, context.mask, condition, context.condition_mask)
        return self._routed("action_decoder", self.norm(x[:, 1:]), route, noisy_actions.shape[-1])

    def _time_embedding(self, timestep: torch.Tensor) -> torch.Tensor:
        """Sinusoids with periods from time_min_period to time_max_period, as pi0. (B,) -> float32 (B, D)."""
        half = self.config.expert_config.hidden_size // 2
        fraction = torch.linspace(0.0, 1.0, half, device=timestep.device, dtype=torch.float32)
        low, high = self.config.time_min_period, self.config.time_max_period
        angle = timestep.float()[:, None] * (2 * math.pi / (low * (high / low) ** fraction))
        return torch.cat((angle.sin(), angle.cos()), dim=-1)

    # ------------------------------------------------------------------ many robots in one batch

    def route(self, embodiment_ids: torch.Tensor) -> Route:
        """Which MLPs each sample takes; see `embodiment_route`."""
        return embodiment_route(self.config.embodiments, embodiment_ids)

    def _routed(self, part: str, x: torch.Tensor, route: Route, out_width: int) -> torch.Tensor:
        """Apply each sample's own MLP. x: (B, T, features), zero-padded where robots differ in dimension."""
        mlps = {name: getattr(coders, part) for name, coders in self.embodiments.items()}
        return apply_routed(mlps, route, x, out_width)


class QueryAdapter(nn.Sequential):
    """C = Adapter(H): MLP from the VLM's width to the expert's (paper, appendix A)."""

    def __init__(self, vlm_hidden_size: int, hidden_size: int) -> None:
        super().__init__(*make_mlp(vlm_hidden_size, hidden_size, hidden_size))


def _prefix_mask(view_mask: torch.Tensor, tokens_per_view: int) -> torch.Tensor:
    """bool (B, V * P + 1): tokens of present views, then the state.

    The mask hides absent views as keys. Their own rows are computed and read by nobody. Noisy actions are no keys of the
    prefix, so that the prefix is the same at every flow step and is computed once.
    """
    images = view_mask[:, :, None].expand(-1, -1, tokens_per_view).flatten(1)
    return torch.cat((images, torch.ones_like(view_mask[:, :1])), dim=1)
