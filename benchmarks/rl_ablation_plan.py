"""What `benchmarks.rl_ablation` runs: the steps that all arms share, and one job per arm and seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rl_ablation_run import ARMS, robot_data
from syvla.training.paper_tables.jobs import Job
from syvla.training.paper_tables.tiny_scale import TinyScale

CHECK_RUN = 900
"""Evaluation run on whose starts imitation learning is measured beforehand; no arm is measured on them."""

VALUE_MODEL = '{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32}'
"""Of the size of `SyVLAValueConfig.tiny()`."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        output: Folder of everything but the shared base.
        tables: Folder of `syvla-tables`, whose tiny base is used or made there.
        arms, seeds: Which runs.
        value_steps: Optimizer steps of the value model's warm-up.
        run: Options of `benchmarks.rl_ablation_run`.
        base: Fields of [`TinyScale`] that differ.
        check: Whether imitation learning is measured and has to leave room above and below.
    """

    output: Path
    tables: Path
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[int, ...] = (0, 1, 2)
    value_steps: int = 200
    run: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    check: bool = True

    @property
    def dataset(self) -> Path:
        return self.tables / "tiny" / "data" / "lift"

    @property
    def il(self) -> Path:
        return self.tables / "tiny" / "flow" / "pretrained"

    def preparation(self) -> list[Job]:
        """Demonstrations, policy, value model and vectors, in order."""
        scale = TinyScale(output=self.tables, **self.base)
        needed = ("lift", "synthetic", "random", "pretrained")  # the rest is for other tables
        jobs = [job for job in scale.preparation_jobs(("all",), "ablation") if job.output.name in needed]
        value = {
            "policy_path": self.il,
            "output_dir": self.output / "value",
            "decision_steps": self.run.get("replan_steps", 4),
            "value_overrides": VALUE_MODEL,
            "max_steps": self.value_steps,
            "warmup_steps": 20,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 16,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        vectors = {"policy_path": self.il, "encoder": f"policy:{self.il}", "output": self.output / "vectors"}
        for module, options, name in (
            ("syvla.training.value_warmup", value, "value"),
            ("syvla.training.retrieval.encode_dataset", vectors, "vectors"),
        ):
            jobs.append(
                Job(module, _words({**options, "robot_datasets": robot_data(self.dataset)}), self.output / name)
            )
        if self.check:
            jobs.append(self._job("il", CHECK_RUN))
        return jobs

    def runs(self) -> dict[tuple[str, int], Job]:
        """The run of each arm and seed; seeds after one another, so that an interrupted benchmark has whole ones."""
        return {(arm, seed): self._job(arm, seed) for seed in self.seeds for arm in self.arms}

    def _job(self, arm: str, seed: int) -> Job:
        output = self.output / "runs" / arm / f"seed{seed}"
        shared = {"il": self.il, "value": self.output / "value", "vectors": self.output / "vectors"}
        options = {"arm": arm, "seed": seed, **shared, "dataset": self.dataset, "output": output, **self.run}
        return Job("benchmarks.rl_ablation_run", _words(options), output, "result.json")


def _words(options: dict[str, Any]) -> tuple[str, ...]:
    return tuple(text for name, value in options.items() for text in (f"--{name}", str(value)))
