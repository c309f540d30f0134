"""Steps whose loss or gradient is no finite number change nothing, are counted, and end the run if they go on.

One such step taken would make every weight NaN, and every later checkpoint with it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

logger = logging.getLogger(__name__)

NAMED_ROWS = 32
"""Rows of a batch that an error names."""

NONFINITE_HELP = (
    "Steps in a row that may be skipped because loss or gradient is not finite; one more ends the run with an error that "
    "names the rows of the batch."
)
"""Help of `max_nonfinite_steps` in every command that trains with [`FiniteStepsMixin`]."""


class NonFiniteError(ValueError):
    """Losses, gradients or weights are not finite."""


class FiniteStepsMixin:
    """For a [`Trainer`]: a step with a loss or gradient that is not finite is skipped, on every process alike.

    Weights, the optimizer's moments and an average of the weights stay as they are. The learning rate goes on by the
    run's steps. A skipped step does not count in the logged loss, whatever `logging_nan_inf_filter` says.

    `args.max_nonfinite_steps` says how many steps in a row may be skipped.

    Attributes:
        nonfinite_steps: Steps that were skipped, in the whole run.
        step_was_skipped: Whether the last step was.
    """

    nonfinite_steps = 0
    step_was_skipped = False
    _skipped_in_a_row = 0
    _since_log = (0, 0)  # steps since the last log line, and those that were skipped among them

    def begin_step(self) -> None:
        """Forgets the micro-batches of the step before."""
        self._step_losses: list[torch.Tensor] = []
        self._step_rows: list[tuple[Sequence[str], torch.Tensor | None]] = []

    def note_rows(self, rows: Sequence[str], suspects: torch.Tensor | None = None) -> None:
        """Notes what a micro-batch is made of, for the error that names it.

        Args:
            rows: A name for every sample.
            suspects: bool (B,), samples whose own loss is not finite; None: not known.
        """
        self._step_rows.append((rows, suspects))

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As [`Trainer.training_step`]; a loss that is not finite is not added to those that are logged."""
        if getattr(self, "_step_losses", None) is None:
            self.begin_step()
        loss: torch.Tensor = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
        self._step_losses.append(loss)
        return torch.where(torch.isfinite(loss), loss, torch.zeros_like(loss))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As [`Trainer._get_grad_norm`], which runs right before the optimizer: here a step is taken or not."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        self.judge_step(model, norm)
        return norm

    def judge_step(self, model: Any, norm: Any) -> None:
        """Drops the gradients of a step that is not finite, so that the optimizer does nothing.

        Args:
            model: The model whose gradients are dropped.
            norm: Norm of all gradients, the same for every process.

        Raises:
            NonFiniteError: If too many steps in a row were not finite; names the rows of the last one.
        """
        trainer: Any = self
        losses = torch.stack([loss.float().mean() for loss in self._step_losses])
        finite = torch.isfinite(losses).all() & (self._scaler_may_lower() or _is_finite(norm, losses.device))
        self.step_was_skipped = not bool(trainer.accelerator.gather(finite[None]).all())
        steps, skipped = self._since_log
        self._since_log = (steps + 1, skipped + self.step_was_skipped)
        if not self.step_was_skipped:
            self._skipped_in_a_row = 0
        else:
            self.nonfinite_steps += 1
            self._skipped_in_a_row += 1
            model.zero_grad(set_to_none=True)
            trainer._tr_loss -= torch.where(torch.isfinite(losses), losses, torch.zeros_like(losses)).sum()
            self._report(losses, norm)
        self.begin_step()

    def _report(self, losses: torch.Tensor, norm: Any) -> None:
        trainer: Any = self
        rows = gather_object(list(self._suspect_rows()))
        named = "; ".join(rows[:NAMED_ROWS]) + (
            f"; and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
        )
        found = (
            f"step {trainer.state.global_step + 1}: loss {float(losses.sum()):.4g}, gradient norm {float(norm):.4g}; "
            f"rows: {named or 'not known'}"
        )
        limit = trainer.args.max_nonfinite_steps
        if trainer.is_deepspeed_enabled:
            raise NonFiniteError(f"{found}. DeepSpeed has taken this step already; resume from the last checkpoint")
        if self._skipped_in_a_row > limit:
            raise NonFiniteError(
                f"{self._skipped_in_a_row} steps in a row are not finite (max_nonfinite_steps={limit}); the last is {found}. "
                "Look for infinite or huge values in these rows, lower learning_rate, or train without fp16. Checkpoints "
                "hold the weights before these steps"
            )
        logger.warning("skipped, since it is not finite: %s", found)

    def _suspect_rows(self) -> Iterator[str]:
        """Names of the samples whose own loss is not finite, or of all where none is known."""
        suspects = [
            row
            for rows, flags in self._step_rows
            if flags is not None
            for row, flag in zip(rows, flags.tolist(), strict=True)
            if flag
        ]
        yield from suspects or (row for rows, _ in self._step_rows for row in rows)

    def _scaler_may_lower(self) -> bool:
        """With fp16 an infinite gradient first means that its scale is too high; the scaler skips such a step itself."""
        scaler = getattr(self.accelerator, "scaler", None)  # type: ignore[attr-defined]
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1.0

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the number of skipped steps, where there were any, and takes them out of the mean loss."""
        if "loss" in logs:
            steps, skipped = self._since_log
            if skipped:
                logs["loss"] = math.nan if skipped == steps else logs["loss"] * steps / (steps - skipped)
            self._since_log = (0, 0)
            if self.nonfinite_steps:
                logs["nonfinite_steps"] = float(self.nonfinite_steps)
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def require_finite_weights(model: nn.Module, gather: Any = list) -> None:
    """Refuses to save weights that are not finite.

    Args:
        model: What is to be saved.
        gather: Concatenates the lists of all processes, which may hold different shards.

    Raises:
        NonFiniteError: Naming some of them.
    """
    bad = [name for name, value in _local_weights(model) if not bool(torch.isfinite(value).all())]
    if bad := sorted(set(gather(bad))):
        raise NonFiniteError(
            f"{len(bad)} weights are not finite, such as {', '.join(bad[:3])}; they are not saved, and earlier checkpoints "
            "stay. Resume from the last one with a lower learning_rate"
        )


def _local_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        value = value.to_local() if hasattr(value, "to_local") else value
        if value.is_floating_point():
            yield name, value


def _is_finite(norm: Any, device: torch.device) -> torch.Tensor:
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    return torch.isfinite(torch.as_tensor(norm, device=device)).all()
