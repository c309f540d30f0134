"""The full scale of `syvla-tables`, for a pretrained SyVLA on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .jobs import Job
from .needs import benchmark_needs, libero_needs, missing_files
from .plans import ARMS
from .rl_stage import RLStage
from .scales import ALONE, RECIPES, STATISTICS_TOLERANCE, SUITES, TASKS, Scale

ENCODER = "clip:openai/clip-vit-base-patch16"
"""Of the images at full scale. The paper says CLIP and does not say which."""

VALUE_CONFIG = "training/accelerate_configs/ddp.yaml"
"""Of the value model's warm-up, which measures before it trains; DeepSpeed cannot at ZeRO-2."""


@dataclass(frozen=True)
class FullScale(Scale):
    """Fine-tuning of a pretrained SyVLA-3B as in Table 7, and the simulators and benchmarks as they are.

    Attributes:
        model_path: Pretrained SyVLA, after the first stage of training.
        regression_model_path: One with `action_head="l1_regression"`, for that baseline.
        multimodal_datasets: The data mixed in.
        libero_datasets: LIBERO's demonstrations as LeRobot datasets (paths, Hub ids or JSON objects), for Table 8.
        data_root: Folder of the VLM benchmarks; None: the Hub.
        accelerate_config: File of `accelerate launch`.
        workers: Processes that simulate the episodes.
    """

    model_path: str | None = None
    regression_model_path: str | None = None
    multimodal_datasets: list[str] = field(default_factory=list)
    libero_datasets: list[str] = field(default_factory=list)
    data_root: str | None = None
    accelerate_config: str = "training/accelerate_configs/zero2.yaml"
    workers: int = 8

    name = "full"
    label = "full: 3B, simulator"
    separate = True
    rl_budget = (10, 20)
    rl_differs = "There is no guard that would hold back a collapsed policy."

    def _data(self, measures: str) -> str:
        return "tasks" if measures in ALONE else {"tasks": "tasks", "libero": "libero"}.get(measures, "calculating")

    def _rl_task(self, measures: str) -> tuple[str, tuple[str, ...]]:
        return (measures if measures in ALONE else "calculating", ("--env-option", "image_size=224"))

    def robot_data(self, measures: str) -> list[str]:
        if self._data(measures) == "libero":
            return list(self.libero_datasets) or ["LIBERO_DATASETS"]
        return super().robot_data(measures)

    def problems(self, arms: Sequence[str], measures: str) -> list[str]:
        missing = []
        bases = {ARMS[arm].base for arm in arms}
        if "flow" in bases and self.model_path is None:
            missing.append("--model-path: a pretrained SyVLA, from training/pretrain.py or syvla-assemble")
        if "regression" in bases and self.regression_model_path is None:
            missing.append("--regression-model-path: the same with action_head='l1_regression' in its config")
        if not self.multimodal_datasets and any("multimodal_share" not in ARMS[arm].options for arm in arms):
            missing.append("--multimodal-datasets: chats to mix in (the paper: COCO, VQA-v2, PixMo, Cambrian)")
        if measures == "libero" and not self.libero_datasets:
            missing.append("--libero-datasets: LIBERO's demonstrations as LeRobot datasets")
        missing += missing_files(
            {
                "--model-path": [self.model_path],
                "--regression-model-path": [self.regression_model_path],
                "--multimodal-datasets": self.multimodal_datasets,
                "--libero-datasets": self.libero_datasets,
                "--accelerate-config": [self.accelerate_config],
            }
        )
        if measures == "libero":
            missing += libero_needs(self.libero_datasets)
        if measures == "benchmarks":
            missing += benchmark_needs(self.data_root)
        return missing

    def preparation_jobs(self, arms: Sequence[str], measures: str) -> list[Job]:
        data = self._data(measures)
        tasks = {"tasks": list(TASKS.values()), "calculating": ["calculating"], "libero": []}[data]
        pictures = ("--image-size", "224", "--videos")
        jobs = [self._record(data, tasks, 300, *pictures)] if tasks else []
        if measures in ALONE:
            jobs.append(self._record(measures, [measures], 300, *pictures))
        return [*jobs, *self._further_demonstrations(arms, measures, tasks, *pictures)]

    def _imitate(self, arm: str, seed: int, measures: str) -> Job:
        paths = {"flow": self.model_path or "MODEL_PATH", "regression": self.regression_model_path or "REGRESSION"}
        before = ARMS[arm].start
        start = None if before is None else self.run_folder(before, seed, measures) / "checkpoint"
        options = {
            "config": f"{RECIPES}/finetune.yaml",
            "model_path": paths[ARMS[arm].base] if start is None else str(start),
            "robot_datasets": self.demonstrations_of(arm, measures),
            "multimodal_datasets": list(self.multimodal_datasets) or ["MULTIMODAL_DATASETS"],
            **self._arm_options(arm, seed),
        }
        output = self.run_folder(arm, seed, measures) / "checkpoint"
        return self._finetune(output, options, _launch(self.accelerate_config), self._stale(arm, seed, measures))

    def rl_stage(self, start: str, seed: int, measures: str) -> RLStage:
        task = self._rl_task(measures)[0]
        loop = ("--replan-steps", "10", "--server-dtype", "bfloat16")
        return RLStage(
            start=self.run_folder(start, seed, measures),
            task=task,
            data=[self._robot_data(task)],
            encoder=ENCODER,
            trainer=self._rl_options(f"{RECIPES}/tables/rl.yaml"),
            value=self._value_options(decision_steps=10),
            robot=self._rl_robot(measures, *loop, "--accelerate-config", self.accelerate_config),
            tolerance=STATISTICS_TOLERANCE if measures in ALONE else None,
            device="cuda:0",
            value_launcher=_launch(VALUE_CONFIG),
            separate=True,
        )

    def measure(self, arm: str, seed: int, measures: str) -> dict[str, Job]:
        run = self.run_folder(arm, seed, measures)
        workers = ("--workers", str(self.workers))
        steps = ("--batch-size", "20", "--replan-steps", "10")
        loop = (*steps, "--env-option", "image_size=224", "--dtype", "bfloat16", *workers)
        if measures == "ablation":
            return {"ablation": self._closed_loop(run, "closed_loop", ["calculating"], 100, arm, *loop)}
        if measures in ALONE:
            return {measures: self._closed_loop(run, measures, [measures], 100, arm, *loop)}
        if measures == "tasks":
            return self._splits(run, arm, 100, loop)
        if measures == "libero":
            tasks = [f"{suite}_{number}" for suite in SUITES.values() for number in range(10)]
            libero = ("--env", "libero", "--batch-size", "10", "--replan-steps", "10", "--dtype", "bfloat16", *workers)
            return {"libero": self._closed_loop(run, "libero", tasks, 50, arm, *libero)}
        options = ("--dtype", "bfloat16", *(() if self.data_root is None else ("--data-root", self.data_root)))
        return {"benchmarks": self._benchmarks(run, options)}


def _launch(config: str) -> tuple[str, ...]:
    return ("accelerate", "launch", "--config_file", config)
