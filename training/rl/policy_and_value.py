"""Policy and value model as one module, so that both run inside the forward that distributed training wraps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from syvla.training.run.adapters import base_model

from .action_likelihood import action_scores, disable_dropout
from .flow_points import ScoredPoints

if TYPE_CHECKING:
    from syvla.modeling_syvla import SyVLAValueModel


class PolicyAndValue(nn.Module):
    """TRL's `PolicyAndValueWrapper` for a flow-matching policy. Dropout is off in both, whatever their configs say.

    Args:
        policy: [`SyVLAModel`], or a `peft.PeftModel` of one.
        value_model: [`SyVLAValueModel`]; None where the objective asks for no values.
    """

    def __init__(self, policy: nn.Module, value_model: SyVLAValueModel | None) -> None:
        super().__init__()
        self.policy: Any = policy
        self.value_model: Any = value_model
        disable_dropout(self)
        self._base = (base_model(policy),)  # in a tuple, so that it does not become a submodule a second time
        self._unused = self._weights_without_gradient()

    @property
    def base_policy(self) -> Any:
        """The [`SyVLAModel`] without its adapter."""
        return self._base[0]

    def forward(
        self,
        policy: Mapping[str, torch.Tensor] | None = None,
        points: tuple[torch.Tensor, ...] | None = None,
        value: Mapping[str, torch.Tensor] | None = None,
        decoupling: bool | None = None,
    ) -> dict[str, torch.Tensor | None]:
        """Computes scores of chunks and values of observations; either may be left out.

        Args:
            policy: Batch for the policy, see `action_scores`.
            points: Fields of [`ScoredPoints`].
            value: Batch for the value model.
            decoupling: See `action_scores`.

        Returns:
            `scores` float32 (B, S), `query_mask` bool (B, N), `velocity` float32 (B, S, T, D) and `mask` bool (B, T, D) as
            in [`ActionScores`], `values` float32 (B',), and `zero`, a scalar of value 0. Adding
            `zero` to the loss gives a gradient to every trained weight that the other outputs do not depend on; DDP waits
            for the gradients of all weights.
        """
        scores = query_mask = velocity = mask = values = None
        if policy is not None:
            assert points is not None
            found = action_scores(self.base_policy, policy, ScoredPoints(*points), decoupling=decoupling)
            scores, query_mask, velocity, mask = found.scores, found.query_mask, found.velocity, found.mask
        if value is not None:
            values = self.value_model(**value).value
        zero = None
        if self.training and torch.is_grad_enabled():
            unreached = list(self._unused)
            unreached += [] if policy is not None else list(self.policy.parameters())
            unreached += [] if value is not None or self.value_model is None else list(self.value_model.parameters())
            zero = sum((0.0 * p.sum() for p in unreached if p.requires_grad), torch.zeros(()))
        found_all = {"scores": scores, "query_mask": query_mask, "velocity": velocity, "mask": mask}
        return {**found_all, "values": values, "zero": zero}

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        for module in self._parts:
            module.gradient_checkpointing_enable(**kwargs)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        for module in self._parts:
            module.activation_checkpointing_enable(**kwargs)

    @property
    def _parts(self) -> list[Any]:
        return [part for part in (self.base_policy, self.value_model) if part is not None]

    def _weights_without_gradient(self) -> list[nn.Parameter]:
        """Trained weights that a batch may not reach: coders of absent robots, and an output layer of its own."""
        policy = self.base_policy
        unused = [*policy.expert.embodiments.parameters()]
        if self.value_model is not None:
            unused += list(self.value_model.state_encoders.parameters())
        head, embedding = policy.get_output_embeddings(), policy.get_input_embeddings()
        if head is not None and head.weight is not embedding.weight:
            unused += list(head.parameters())
        return unused
