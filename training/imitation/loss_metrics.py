"""Losses per robot and per dataset, summed where they are computed and put together over all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

GROUPS = ("embodiment", "source")
_PARTS = 4  # action loss and its samples, language loss and its tokens


class LossMetrics:
    """Sums since the last report. A batch, or a whole process, may lack any robot or dataset.

    Args:
        embodiments: Name and id of every robot.
        sources: Name of every dataset, in the order of their numbers.
        action_weight, lm_weight: Weights of the losses in the total.
    """

    def __init__(
        self, embodiments: dict[str, int], sources: Sequence[str], action_weight: float, lm_weight: float
    ) -> None:
        self.embodiments, self.sources = dict(embodiments), list(sources)
        self.weights = (action_weight, lm_weight)
        self._ids = torch.tensor(list(self.embodiments.values()), dtype=torch.long)
        self.sums = torch.zeros(2 + _PARTS * (1 + len(self.embodiments) + len(self.sources)))

    def update(self, outputs: Any, is_robot: torch.Tensor, embodiment_ids: Any, source_ids: Any) -> torch.Tensor:
        """Add one batch.

        Args:
            outputs: [`SyVLAOutput`].
            is_robot: bool (B,), samples with an action loss.
            embodiment_ids: int64 (B,) or None; source_ids: int64 (B,) or None.

        Returns:
            bool (B,), samples with a loss that is not finite; the sums leave them out.
        """
        values = sample_losses(outputs, is_robot)
        # The step of such a sample is skipped. In the sums it would hide all others of its robot and dataset.
        finite = torch.isfinite(values).all(-1)
        values = torch.where(finite[:, None], values, 0.0)
        table = torch.zeros(1 + len(self.embodiments) + len(self.sources), _PARTS, device=values.device)
        table[0] = values.sum(0)
        if embodiment_ids is not None and len(self._ids):
            same = embodiment_ids[None] == self._ids.to(values.device)[:, None]  # (E, B)
            table[1 : 1 + len(self._ids)] = same.float() @ values
        if source_ids is not None:
            table.index_add_(0, source_ids + 1 + len(self.embodiments), values)
        masked = torch.zeros(2, device=values.device)
        if (mask := outputs.get("query_mask")) is not None:
            masked = torch.stack([(~mask).sum(), torch.tensor(mask.numel(), device=mask.device)]).float()
        self.sums = self.sums.to(values.device) + torch.cat([masked, table.flatten()])
        return ~finite

    def report(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Means over all processes since the last report; names without a sample are left out. Starts anew."""
        sums = gather(self.sums[None]).double().sum(0).tolist()
        self.sums = torch.zeros_like(self.sums)
        logs: dict[str, float] = {}
        if sums[1]:
            logs["decoupling/masked_fraction"] = sums[0] / sums[1]
        names = ["", *(f"_by_embodiment/{name}" for name in self.embodiments)]
        names += [f"_by_source/{name}" for name in self.sources]
        for number, name in enumerate(names):
            begin = 2 + _PARTS * number
            losses = named_losses(name, sums[begin : begin + _PARTS], self.weights)
            if not name:
                losses.pop("loss", None)  # the trainer logs it
            logs.update(losses)
        return {name: round(value, 6) for name, value in logs.items()}

    def state_dict(self) -> list[float]:
        """Sums of this process."""
        return self.sums.tolist()

    def load_state_dict(self, sums: list[float]) -> None:
        """Goes on with sums of a process with the same robots and datasets; others are dropped."""
        if len(sums) == len(self.sums):
            self.sums = torch.tensor(sums)


def sample_losses(outputs: Any, is_robot: torch.Tensor) -> torch.Tensor:
    """Action loss and its samples (1 or 0), summed language loss and its tokens of each sample, float32 (B, 4).

    Args:
        outputs: [`SyVLAOutput`].
        is_robot: bool (B,), samples with an action loss.
    """
    values = torch.zeros(len(is_robot), _PARTS, device=is_robot.device)
    per_sample, lm_sums = outputs.get("action_loss_per_sample"), outputs.get("lm_loss_sums")
    if per_sample is not None:
        values[is_robot, 0] = per_sample.detach().float()
        values[is_robot, 1] = 1
    if lm_sums is not None:
        values[:, 2] = lm_sums.detach().float()
        values[:, 3] = outputs["label_tokens"].float()
    return values


def named_losses(name: str, sums: Sequence[float], weights: tuple[float, float]) -> dict[str, float]:
    """Means of one group of samples, from its sums in the order of `sample_losses`; parts without a sample are left out.

    Args:
        name: What follows `loss`, `action_loss` and `lm_loss` in the names.
        sums: Action loss, its samples, language loss, its tokens.
        weights: Of both losses in `loss`.
    """
    action, samples, language, tokens = sums
    found: dict[str, float] = {}
    parts = []
    for loss, count, weight, prefix in (
        (action, samples, weights[0], "action_loss"),
        (language, tokens, weights[1], "lm_loss"),
    ):
        if count:
            found[f"{prefix}{name}"] = loss / count
            parts.append(weight * loss / count)
    if parts:
        found[f"loss{name}"] = sum(parts)
    return found


def source_names(datasets: Sequence[Any]) -> list[str]:
    """A short name for each dataset: the last part of its path, with a number where two share it."""
    names: list[str] = []
    for number, dataset in enumerate(datasets):
        path = str(getattr(dataset, "name", None) or getattr(dataset, "root", None) or f"dataset_{number}")
        base = path.rstrip("/").rsplit("/", 1)[-1]
        name, copy = base, 2
        while name in names:
            name, copy = f"{base}-{copy}", copy + 1
        names.append(name)
    return names
