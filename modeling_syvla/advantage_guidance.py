"""Classifier-free guidance by an advantage indicator in the prompt (RECAP, pi*0.6).

A model whose prompts said in training whether an action is better than the policy's usual ones ("positive", "negative", or
nothing) has two velocities for an observation: v of the prompt with the indicator and u of the one without. The guided flow
follows `u + weight * (v - u)`. Weight 1 is the indicator alone, a larger one moves further from the policy's average.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch

from .action_expert import EncodedObservation
from .expert_inputs import ExpertObservation


class GuidedExpert:
    """An action expert whose velocities are guided, in place of the expert in the samplers of a flow.

    Args:
        expert: `ActionExpert`.
        weight: See the module.

    Its contexts hold 2 B samples, as `doubled` makes them; everything else that it takes and gives has B.
    """

    def __init__(self, expert: Any, weight: float) -> None:
        self.expert, self.weight = expert, weight

    def encode_times(self, timestep: torch.Tensor) -> torch.Tensor:
        """As `ActionExpert.encode_times`."""
        encoded: torch.Tensor = self.expert.encode_times(timestep)
        return encoded

    def predict_velocity(
        self, noisy_actions: torch.Tensor, timestep: torch.Tensor, context: Any, attended: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `ActionExpert.predict_velocity`."""
        return self.velocity_at(noisy_actions, self.encode_times(timestep), context, attended)

    def velocity_at(
        self,
        noisy_actions: torch.Tensor,
        time: torch.Tensor,
        context: Any,
        attended: torch.Tensor | None = None,
        later: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `ActionExpert.velocity_at`, float32 (B, T, D)."""
        time = time if len(time) == 1 else torch.cat((time, time))
        parts = [None if part is None else torch.cat((part, part)) for part in (attended, later)]
        both = self.expert.velocity_at(torch.cat((noisy_actions, noisy_actions)), time, context, *parts)
        indicated, plain = both.float().chunk(2)
        guided: torch.Tensor = plain + self.weight * (indicated - plain)
        return guided


def doubled(encoded: EncodedObservation) -> EncodedObservation:
    """The encoded observations twice, one after the other, for the prompts with and those without the indicator."""
    rows = (getattr(encoded.observation, part.name) for part in fields(encoded.observation))
    observation = ExpertObservation(*(torch.cat((row, row)) for row in rows))
    prefix = encoded.prefix
    if prefix is not None:
        prefix = [(torch.cat((key, key)), torch.cat((value, value))) for key, value in prefix]
    return EncodedObservation(observation, torch.cat((encoded.image_features, encoded.image_features)), prefix)


def check_advantage_guidance(model: Any, weight: float | None) -> None:
    """Raises ValueError for a weight that a model cannot follow. None and every model go together."""
    if weight is None:
        return
    if not model.config.advantage_conditioned:
        raise ValueError(
            "advantage_guidance: this checkpoint was not trained with an advantage indicator in its prompts "
            "(advantage_conditioned is false); leave it out, or train with syvla-ppo --objective recap"
        )
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise ValueError(f"advantage_guidance: expected a positive number, 1 for no guidance, got {weight!r}")
    if weight != 1 and model.compiled_denoising is not None:
        raise ValueError(
            "advantage_guidance: the compiled flow steps take no guidance; load the checkpoint without compile, or leave the "
            "weight at 1"
        )


def require_plain(weight: float | None, plain: torch.Tensor | None, what: str, think: bool = False) -> None:
    """Raises ValueError unless there is a prompt, or its states, without the indicator exactly where guidance needs it."""
    needed = weight is not None and weight != 1
    if needed != (plain is not None):
        raise ValueError(
            f"{what}: expected together with an advantage_guidance other than 1, and only then; make it with "
            f"advantage='none' (advantage_guidance is {weight!r})"
        )
    if plain is not None and think:
        raise ValueError(
            "advantage_guidance: expected without think=True, since both prompts need the same thought; generate it first, and "
            "make both prompts with it (thought=)"
        )
