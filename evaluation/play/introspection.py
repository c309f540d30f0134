"""What happens inside a policy while it answers: where the expert attends to, and which query states decoupling would mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from syvla.modeling_syvla.expert_inputs import ExpertObservation, action_target
from syvla.modeling_syvla.intention_decoupling import decoupling_mask, gradient_norms

ATTENTION_TIME = 0.5
"""Flow time at which attention is read: half-way between noise (0) and action (1)."""

DECOUPLING_DRAWS = 8
"""Draws of noise and time over which the loss behind the gradient is summed. Training takes one."""


@dataclass(frozen=True)
class ExpertAttention:
    """Shares of attention of the action tokens, means over layers, heads and steps of the chunk.

    Attributes:
        views: View to its share of self-attention.
        state: Share of the state token.
        chunk: Share of timestep and action tokens; views, state and chunk sum to 1.
        queries: (N,) share of each query state in cross-attention; they sum to 1.
    """

    views: dict[str, float]
    state: float
    chunk: float
    queries: list[float]


@dataclass(frozen=True)
class Decoupling:
    """What Intention Decoupling would do if the chunk that the policy chose were a demonstration's.

    Attributes:
        norms: (N,) l2 norms of the gradient of the action loss, one per query state.
        kept: (N,) False where training would zero the state.
    """

    norms: list[float]
    kept: list[bool]


class _AttentionRecorder(TorchFunctionMode):
    """Notes the weights of every attention that is computed while it is active; results do not change."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []  # (B, heads, Q, K)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            queries, keys = args[0].float(), args[1].float()
            scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
            if (mask := kwargs.get("attn_mask")) is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            self.weights.append(scores.softmax(-1))
        return func(*args, **kwargs)


@contextmanager
def recorded_attention() -> Iterator[list[torch.Tensor]]:
    """Fills the list with the weights (B, heads, Q, K) of each attention of the body, in order."""
    recorder = _AttentionRecorder()
    with recorder:
        yield recorder.weights


@torch.no_grad()
def expert_attention(
    model: Any, query_states: torch.Tensor, observation: ExpertObservation, actions: torch.Tensor, noise: torch.Tensor
) -> ExpertAttention:
    """Where the action tokens of one sample look while the chunk is half noise.

    Args:
        model: `SyVLAModel` with a flow-matching head.
        query_states: H in the paper, (1, N, D_vlm).
        observation: Of one sample.
        actions: The chosen chunk, normalized, (1, T, D_max).
        noise: (1, T, D_max).

    Raises:
        ValueError: The model has no expert to look into.
    """
    _require_flow(model)
    context = model.encode_expert_context(query_states, observation)
    time = torch.full((1,), ATTENTION_TIME, device=actions.device)
    with recorded_attention() as weights:
        model.expert.predict_velocity(torch.lerp(noise, actions, ATTENTION_TIME), time, context)
    own, cross = (torch.stack([w[0, :, 1:] for w in weights[kind::2]]).mean((0, 1, 2)) for kind in (0, 1))
    prefix = context.prefix_mask.shape[1]  # image tokens of all views, then the state
    images = own[: prefix - 1].unflatten(0, (len(model.config.views), -1)).sum(-1)
    return ExpertAttention(
        dict(zip(model.config.views, images.tolist(), strict=True)),
        float(own[prefix - 1]),
        float(own[prefix:].sum()),
        cross.tolist(),
    )


def query_decoupling(
    model: Any, query_states: torch.Tensor, observation: ExpertObservation, actions: torch.Tensor, seed: int = 0
) -> Decoupling:
    """Gradient norms of one sample's query states, and the mask that training would make of them (paper, section 3.2).

    Args:
        model, query_states, observation, actions: As in `expert_attention`. The chunk stands in for the demonstration's, which
            is not known here.
        seed: Of noise and time.

    Raises:
        ValueError: The model has no expert to look into, or its configuration rules decoupling out.
    """
    _require_flow(model)
    if model.config.conditioning != "query_states":
        raise ValueError(
            "conditioning: decoupling asks for 'query_states', which this model's expert does not read alone"
        )
    draws = DECOUPLING_DRAWS
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((draws, *actions.shape[1:]), generator=generator).to(actions.device)
    time = (torch.arange(draws, device=actions.device) + 0.5) / draws * model.config.time_max
    many = observation.select(torch.zeros(draws, dtype=torch.long, device=actions.device))
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors of inference mode cannot take part in a backward pass; copies can.
        copies = ExpertObservation(
            many.state.clone(), many.embodiment_ids.clone(), many.pixel_values.clone(), many.view_mask.clone()
        )
        probe = query_states.detach().clone().requires_grad_()
        target = action_target(
            model.config, copies.embodiment_ids, actions.clone().expand(draws, -1, -1), None, noise, time
        )
        encoded = model.expert.encode_observation(copies).detach()
        loss = model.loss_of_states(probe.expand(draws, -1, -1), encoded, target)
        norms = gradient_norms(loss, probe)
    kept = decoupling_mask(norms, model.config.decoupling_quantile, "sample", model.config.decoupling_choice)
    return Decoupling(norms[0].tolist(), kept[0].tolist())


def _require_flow(model: Any) -> None:
    if model.config.action_head != "flow_matching":
        raise ValueError(
            f"action_head: expected 'flow_matching', whose expert attends, got {model.config.action_head!r}"
        )
