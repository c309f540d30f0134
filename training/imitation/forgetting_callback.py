"""Measures on a few rows of the VLM benchmarks, while training goes on, what the VLM still knows."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from syvla.evaluation.vlm_benchmarks.evaluate_vlm import check_request, evaluate_vlm
from syvla.evaluation.vlm_benchmarks.lmms_eval_import import INSTALL_HINT

from .periodic_measurement import PeriodicMeasurement


class ForgettingCallback(PeriodicMeasurement):
    """Logs `eval_vlm/<benchmark>` before the first step, every `vlm_eval_steps` steps and at the end.

    Scores are in the units of `syvla-eval-vlm`, of the first `vlm_eval_rows` rows: good for watching a run, not for a
    table. Training goes on as if nothing had happened: random generators and the modes of all modules are put back. With
    `ema_decay` the average is measured, since it is what is saved. Under several processes all take part.

    Args:
        trainer: The [`SyVLATrainer`], whose arguments say what to measure.

    Raises:
        ValueError: If lmms-eval or data are missing, before training starts.
    """

    def __init__(self, trainer: Any) -> None:
        args = trainer.args
        if find_spec("lmms_eval") is None:
            raise ValueError(f"vlm_eval_steps: needs lmms-eval; {INSTALL_HINT}")
        super().__init__(args.vlm_eval_steps)
        self.trainer = trainer
        self.options: dict[str, Any] = {
            "tasks": list(args.vlm_eval_tasks),
            "data_root": Path(args.vlm_eval_data_root) if args.vlm_eval_data_root else None,
            "limit": args.vlm_eval_rows,
            "protocol": "lmms-eval",
            "image_budget": "checkpoint",  # what the model is trained with, and far cheaper than a protocol's
        }
        try:
            check_request(**self.options)
        except (ValueError, OSError) as error:
            raise ValueError(f"vlm_eval_tasks, vlm_eval_rows (limit), vlm_eval_data_root: {error}") from error

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._run(state.global_step)

    def measure(self, step: int) -> None:
        from accelerate.utils import broadcast_object_list

        trainer = self.trainer
        with trainer.averaged_weights(), trainer.accelerator.autocast():
            result = evaluate_vlm(
                trainer.policy,
                processor=trainer.processing_class,
                max_new_tokens=trainer.args.vlm_eval_max_new_tokens,
                max_batch_size=trainer.args.per_device_eval_batch_size,
                device=trainer.args.device.type,
                progress=False,
                **self.options,
            )
        scores = {} if result is None else {name: entry.score for name, entry in result.benchmarks.items()}
        shared = [scores]  # known to the first process alone; all of them log
        broadcast_object_list(shared)
        trainer.log({f"eval_vlm/{name}": score for name, score in shared[0].items()})
