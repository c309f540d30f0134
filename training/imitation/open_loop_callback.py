"""Compares predicted with recorded actions on held-out episodes while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

OpenLoopMeasure = Callable[[Any, Any, Any], Mapping[str, float]]
"""(policy, processor, held-out [`RobotDataset`]) -> numbers by name. It leaves modes and random generators as they are."""


class OpenLoopCallback(TrainerCallback):
    """Logs `eval_open_loop/<dataset>/<name>` every `steps` steps and at the end. With `ema_decay` of the average.

    Args:
        trainer: The [`SyVLATrainer`].
        measure: What to call; on the first process alone, the others wait.
        datasets: Held-out robot data.
        names: A name for each of them.
        steps: Steps between measurements.
    """

    def __init__(
        self, trainer: Any, measure: OpenLoopMeasure, datasets: Sequence[Any], names: Sequence[str], steps: int
    ) -> None:
        self.trainer, self.measure, self.steps = trainer, measure, steps
        self.datasets = dict(zip(names, datasets, strict=True))
        self.measured_at = -1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            due = control.should_log
            self._measure(state.global_step)
            control.should_log = due  # logging the numbers has settled it, but the losses are still to come

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self.measured_at:
            self._measure(state.global_step)

    def _measure(self, step: int) -> None:
        from accelerate.utils import broadcast_object_list

        trainer = self.trainer
        found: dict[str, float] = {}
        if trainer.is_world_process_zero():
            training = {module: module.training for module in trainer.policy.modules()}
            trainer.policy.eval()
            try:
                with trainer.averaged_weights(), trainer.accelerator.autocast():
                    for name, dataset in self.datasets.items():
                        numbers = self.measure(trainer.policy, trainer.processing_class, dataset)
                        found |= {f"eval_open_loop/{name}/{key}": float(value) for key, value in numbers.items()}
            finally:
                for module, mode in training.items():
                    module.training = mode
        shared = [found]
        broadcast_object_list(shared)
        trainer.log(shared[0])
        self.measured_at = step
