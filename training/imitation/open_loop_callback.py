"""Compares predicted with recorded actions on held-out episodes while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .periodic_measurement import PeriodicMeasurement

OpenLoopMeasure = Callable[[Any, Any, Any], Mapping[str, float]]
"""(policy, processor, held-out [`RobotDataset`]) -> numbers by name. It leaves modes and random generators as they are."""


class OpenLoopCallback(PeriodicMeasurement):
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
        super().__init__(steps)
        self.trainer, self.compare = trainer, measure
        self.datasets = dict(zip(names, datasets, strict=True))

    def measure(self, step: int) -> None:
        from accelerate.utils import broadcast_object_list

        trainer = self.trainer
        found: dict[str, float] = {}
        if trainer.is_world_process_zero():
            training = {module: module.training for module in trainer.policy.modules()}
            trainer.policy.eval()
            try:
                with trainer.averaged_weights(), trainer.accelerator.autocast():
                    for name, dataset in self.datasets.items():
                        numbers = self.compare(trainer.policy, trainer.processing_class, dataset)
                        found |= {f"eval_open_loop/{name}/{key}": float(value) for key, value in numbers.items()}
            finally:
                for module, mode in training.items():
                    module.training = mode
        shared = [found]
        broadcast_object_list(shared)
        trainer.log(shared[0])
