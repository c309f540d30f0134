"""Losses over a held-out set: totals of all processes, by robot and by dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .loss_metrics import named_losses, sample_losses

_ROBOTS, _CHATS = 0, 1  # rows of the table before those of robots and datasets


class HeldOutLosses:
    """Sums over one evaluation. Unlike in training a loss that is not finite counts: the result is then NaN.

    Args:
        embodiments: Name and id of every robot.
        sources: Name of every held-out dataset, in the order of their numbers.
        chats: Whether each of them is multi-modal.
        action_weight, lm_weight: Weights of the losses in the total.
    """

    def __init__(
        self,
        embodiments: dict[str, int],
        sources: Sequence[str],
        chats: Sequence[bool],
        action_weight: float,
        lm_weight: float,
    ) -> None:
        self.embodiments, self.sources, self.chats = dict(embodiments), list(sources), list(chats)
        self.weights = (action_weight, lm_weight)
        self.sums = torch.zeros(2 + len(self.embodiments) + len(self.sources), 5, dtype=torch.float64)

    def update(self, outputs: Any, is_robot: torch.Tensor, counts: torch.Tensor, ids: Any, sources: Any) -> None:
        """Add one batch.

        Args:
            outputs: [`SyVLAOutput`].
            is_robot: bool (B,), samples with an action loss.
            counts: bool (B,), samples that no other process or batch adds.
            ids: Of the robots, int64 (B,) or None; sources: numbers of the datasets, int64 (B,) or None.
        """
        values = sample_losses(outputs, is_robot).double().cpu()
        values = torch.cat([values, torch.ones(len(values), 1, dtype=values.dtype)], dim=1)  # and the samples
        values = torch.where(counts.cpu()[:, None], values, 0.0)
        robot = is_robot.cpu()
        self.sums[_ROBOTS] += values[robot].sum(0)
        self.sums[_CHATS] += values[~robot].sum(0)
        for row, number in enumerate(self.embodiments.values(), start=2):
            if ids is not None:
                self.sums[row] += values[ids.cpu() == number].sum(0)
        if sources is not None and self.sources:
            self.sums.index_add_(0, sources.cpu() + 2 + len(self.embodiments), values)

    def report(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """The losses, by name.

        `loss`, `action_loss` and `lm_loss` (of thoughts) are those of the robots' samples; `vlm_loss` is the mean over the
        answer tokens of multi-modal rows, which tells what the VLM forgets. Without robots `loss` is that of the rows.

        Args:
            gather: Concatenates every process's tensor along the first dimension.
        """
        sums = gather(self.sums[None]).sum(0).tolist()
        logs: dict[str, float] = {}
        groups = [("", sums[_ROBOTS])]
        groups += zip((f"_by_embodiment/{name}" for name in self.embodiments), sums[2:], strict=False)
        groups += zip((f"_by_source/{name}" for name in self.sources), sums[2 + len(self.embodiments) :], strict=True)
        for name, (*parts, _) in groups:
            logs.update(named_losses(name, parts, self.weights))
        rows = named_losses("", sums[_CHATS][:4], self.weights)
        if "lm_loss" in rows:
            logs["vlm_loss"] = rows["lm_loss"]
            logs.setdefault("loss", rows["loss"])
        return {**{name: round(value, 6) for name, value in logs.items()}, "samples": sums[0][4] + sums[1][4]}

    def names(self) -> list[str]:
        """Every name that a report may hold; what data lacks is absent from it."""
        groups = ["", *(f"_by_embodiment/{name}" for name in self.embodiments)]
        groups += [f"_by_source/{name}" for name in self.sources]
        found = [f"{part}{group}" for group in groups for part in ("loss", "action_loss", "lm_loss")]
        return [*found, "vlm_loss"] if any(self.chats) else found
