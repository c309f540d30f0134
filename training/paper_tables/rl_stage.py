"""The stage of RL in the runs of Tables 3, 10 and 11: value warm-up, vectors for retrieval, and `syvla-rl` as jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .jobs import Job, option_words


@dataclass(frozen=True)
class RLStage:
    """RL from one policy on one task. Its value model and vectors are made once for all arms that start from it.

    Attributes:
        start: Folder of the run whose policy it starts from.
        task: What the robots do.
        data: Data specifications of the demonstrations of that task, which expert samples come from.
        encoder: Of images, for retrieval.
        trainer: Options of `training/ppo.py`.
        value: Options of `training/value_warmup.py`.
        robot: Words for `syvla-rl` beside the task.
        tolerance: Largest accepted difference of statistics; None: the default of what is called.
        device: Of the encoder.
        value_launcher: Words before `training/value_warmup.py`; none: no process of its own.
        separate: Whether to encode in a process of its own.
    """

    start: Path
    task: str
    data: list[str]
    encoder: str
    trainer: Mapping[str, Any]
    value: Mapping[str, Any]
    robot: tuple[str, ...]
    tolerance: float | None = None
    device: str = "cpu"
    value_launcher: tuple[str, ...] = ()
    separate: bool = False
    _common: dict[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tolerance = {} if self.tolerance is None else {"statistics_tolerance": self.tolerance}
        object.__setattr__(self, "_common", {"robot_datasets": self.data, **tolerance})

    @property
    def policy(self) -> str:
        return str(self.start / "checkpoint")

    def jobs(self, arm: Mapping[str, Any], seed: int, output: Path, think: bool) -> list[Job]:
        """The jobs of one arm in order; the last one makes the policy.

        Args:
            arm: What it changes of the trainer's options.
            seed: Of value model, rollouts and updates.
            output: Folder of the run of RL, and of its last policy.
            think: Whether the policy thinks before each chunk.
        """
        value, vectors = self.start / f"value_{self.task}", self.start / f"vectors_{self.task}"
        warm_up = {**self.value, "policy_path": self.policy, **self._common, "seed": seed, "output_dir": str(value)}
        jobs = [Job("syvla.training.value_warmup", option_words(warm_up), value, launcher=self.value_launcher)]
        options = {
            **self.trainer,
            "model_path": self.policy,
            "value_model_path": str(value),
            **self._common,
            "seed": seed,
            **arm,
        }
        if arm.get("expert_mode", "similar") == "similar":
            encode = {
                "policy_path": self.policy,
                **self._common,
                "encoder": self.encoder,
                "devices": self.device,
                "output": str(vectors),
            }
            jobs.append(
                Job(
                    "syvla.training.retrieval.encode_dataset",
                    option_words(encode),
                    vectors,
                    keeps_partial=True,
                    separate=self.separate,
                )
            )
            retrieval = {"encoder": self.encoder, "encoder_device": self.device, "retrieval_path": str(vectors)}
            options = {**options, **retrieval}
        words = ("--task", self.task, *self.robot, *(("--think",) if think else ()))
        words = (*words, *option_words({**options, "output_dir": str(output)}))
        jobs.append(Job("syvla.training.rl_run", words, output, "summary.json", keeps_partial=True))
        return jobs
