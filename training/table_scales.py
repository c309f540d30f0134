"""The two scales of `syvla-tables`: tiny, which runs on a CPU, and full, for a pretrained SyVLA on GPUs.

Each turns arms and measurements into jobs: what has to be prepared, how an arm is trained, how it is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.demo import CAMERAS, EMBODIMENT
from training.table_jobs import Job
from training.table_plans import ARMS

TASKS = {"Task 1": "place", "Task 2": "calculating", "Task 3": "bagging"}
"""The paper's tasks to ours; `place` stands in for folding, which needs cloth."""

SUITES = {"Spatial": "libero_spatial", "Object": "libero_object", "Goal": "libero_goal", "Long": "libero_10"}
_EVAL, _EVAL_VLM = "evaluation.closed_loop", "evaluation.vlm_benchmarks.evaluate_vlm"
_RECIPES = "training/recipes"
_TWO_OBJECTS = ("--env-option", "distractors=1")
"""With a second object on the table only the instruction tells which to lift, so that the action expert, which does not read
it, depends on the query states."""


@dataclass(frozen=True)
class Scale:
    """Jobs at one scale.

    Attributes:
        output: Folder of everything.
        train_steps: Optimiser steps of each run; None: the recipe's.
        episodes: Evaluation episodes per task; None: the scale's own.
        demonstrations: Recorded per task; None: the scale's own.
    """

    output: Path
    train_steps: int | None = None
    episodes: int | None = None
    demonstrations: int | None = None

    name = ""
    label = ""
    separate = False  # whether measurements run in processes of their own

    def prepare(self, arms: Sequence[str], measures: str) -> list[Job]:
        """What has to be there before any of the arms is trained, in order."""
        raise NotImplementedError

    def train(self, arm: str, seed: int, measures: str) -> Job:
        """The training of an arm."""
        raise NotImplementedError

    def measure(self, arm: str, seed: int, measures: str) -> dict[str, Job]:
        """The measurements of a trained arm by name."""
        raise NotImplementedError

    def problems(self, arms: Sequence[str], measures: str) -> list[str]:
        """What the user has to bring before this can run."""
        return []

    def run_folder(self, arm: str, seed: int, measures: str) -> Path:
        """Folder of one run; tables that train on the same data share it."""
        return self.output / self.name / "runs" / self._data(measures) / arm / f"seed{seed}"

    def _data(self, measures: str) -> str:
        """Name of the demonstrations that a measurement needs."""
        raise NotImplementedError

    def robot_data(self, measures: str) -> list[str]:
        """Data specifications of the demonstrations, as the training scripts take them."""
        return [self._robot_data(self._data(measures))]

    def _record(self, name: str, tasks: Sequence[str], episodes: int, *options: str) -> Job:
        output = self.output / self.name / "data" / name
        words = [word for task in tasks for word in ("--task", task)]
        arguments = (*words, "--episodes", str(self.demonstrations or episodes), *options, "--output", str(output))
        arguments = ("--env", "tabletop", *arguments)
        return Job("evaluation.record_demonstrations", arguments, output, separate=self.separate)

    def _robot_data(self, name: str) -> str:
        path = str(self.output / self.name / "data" / name)
        return json.dumps({"path": path, "embodiment": EMBODIMENT, "cameras": CAMERAS})

    def _closed_loop(self, run: Path, name: str, tasks: Sequence[str], episodes: int, arm: str, *options: str) -> Job:
        words = [word for task in tasks for word in ("--task", task)]
        arguments = ("--model", str(run / "checkpoint"), *words, "--episodes", str(self.episodes or episodes), *options)
        think = ("--think",) if ARMS[arm].thinks else ()
        output = run / name
        arguments = (*arguments, *think, "--quiet", "--output", str(output))
        return Job(_EVAL, arguments, output, "summary.json", keeps_partial=True, separate=self.separate)

    def _benchmarks(self, run: Path, options: tuple[str, ...]) -> Job:
        output = run / "benchmarks"
        arguments = ("--model", str(run / "checkpoint"), *options, "--quiet", "--output", str(output))
        return Job(_EVAL_VLM, arguments, output, "summary.json", separate=self.separate)

    def _splits(self, run: Path, arm: str, episodes: int, loop: tuple[str, ...]) -> dict[str, Job]:
        """Three tasks in domain; the two with an out-of-distribution split there as well."""
        tasks = list(TASKS.values())
        return {
            "in_domain": self._closed_loop(run, "in_domain", tasks, episodes, arm, *loop),
            "ood": self._closed_loop(run, "ood", tasks[1:], episodes, arm, *loop, "--env-option", "split=ood"),
        }

    def _finetune(self, output: Path, options: Mapping[str, Any], launcher: tuple[str, ...] = ()) -> Job:
        words: list[str] = []
        for name, value in options.items():
            values = list(value) if isinstance(value, list | tuple) else [value]
            words += [f"--{name}", *(v if isinstance(v, str) else json.dumps(v) for v in values)]
        return Job("training.finetune", (*words, "--output_dir", str(output)), output, launcher=launcher)

    def _arm_options(self, arm: str, seed: int) -> dict[str, Any]:
        options: dict[str, Any] = {"model_overrides": dict(ARMS[arm].overrides), "seed": seed, **ARMS[arm].options}
        if self.train_steps is not None:
            options["max_steps"] = self.train_steps
        return options


@dataclass(frozen=True)
class TinyScale(Scale):
    """1.2 million parameters, a simulator, synthetic benchmarks; everything is made here.

    Attributes:
        base_steps: Optimiser steps of the common base; None: the recipe's.
        chats: Chats of the multi-modal data.
        rows: Rows of each synthetic benchmark; a multiple of four keeps HallusionBench's sets whole.
    """

    base_steps: int | None = None
    chats: int = 6000
    rows: int = 120

    name = "tiny"
    label = "tiny: 1.2 M parameters, simulator, CPU"

    def _data(self, measures: str) -> str:
        return "tasks" if measures == "tasks" else "two_objects"

    def problems(self, arms: Sequence[str], measures: str) -> list[str]:
        if measures in ("ablation", "tasks", "benchmarks"):
            return []
        return ["--scale full: what it measures has no tiny counterpart that fits a CPU"]

    def prepare(self, arms: Sequence[str], measures: str) -> list[Job]:
        root = self.output / self.name
        data = self._data(measures)
        jobs = [self._record("lift", ["lift"], 120)]  # of the base, which is the same for every table
        if data == "tasks":
            jobs.append(self._record(data, list(TASKS.values()), 120))
        else:
            jobs.append(self._record(data, ["lift"], 240, *_TWO_OBJECTS))
        synthetic = ("--output", str(root / "synthetic"), "--rows", str(self.rows), "--train-rows", str(self.chats))
        jobs.append(Job("evaluation.vlm_benchmarks.synthetic_data", synthetic, root / "synthetic"))
        for base in dict.fromkeys(ARMS[arm].base for arm in arms):
            head = "l1_regression" if base == "regression" else "flow_matching"
            random, pretrained, start = (self._base(base, stage) for stage in ("random", "pretrained", "base"))
            making = ("random", "--action-head", head, str(root / "data" / "lift"), str(random))
            jobs.append(Job("training.tiny_base", making, random))
            options = {
                "config": f"{_RECIPES}/tables/tiny_base.yaml",
                "model_path": str(random),
                "robot_datasets": self._robot_data("lift"),
                "multimodal_datasets": str(root / "synthetic" / "train" / "chats.jsonl"),
                "disable_tqdm": True,
                **({} if self.base_steps is None else {"max_steps": self.base_steps}),
            }
            jobs.append(self._finetune(pretrained, options))
            jobs.append(Job("training.tiny_base", ("fresh-queries", str(pretrained), str(start)), start))
        return jobs

    def train(self, arm: str, seed: int, measures: str) -> Job:
        options = {
            "config": f"{_RECIPES}/tables/tiny_run.yaml",
            "model_path": str(self._base(ARMS[arm].base, "base")),
            "robot_datasets": self._robot_data(self._data(measures)),
            "multimodal_datasets": str(self.output / self.name / "synthetic" / "train" / "chats.jsonl"),
            "disable_tqdm": True,
            **self._arm_options(arm, seed),
        }
        return self._finetune(self.run_folder(arm, seed, measures) / "checkpoint", options)

    def measure(self, arm: str, seed: int, measures: str) -> dict[str, Job]:
        run = self.run_folder(arm, seed, measures)
        loop = ("--batch-size", "20", "--replan-steps", "4", "--max-new-tokens", "20", "--device", "cpu")
        if measures == "ablation":
            return {"ablation": self._closed_loop(run, "closed_loop", ["lift"], 60, arm, *loop, *_TWO_OBJECTS)}
        if measures == "tasks":
            return self._splits(run, arm, 60, loop)
        if measures == "benchmarks":
            data = self.output / self.name / "synthetic" / "benchmarks"
            options = ("--data-root", str(data), "--max-new-tokens", "16", "--device", "cpu")
            return {"benchmarks": self._benchmarks(run, options)}
        if measures == "libero":
            return {}
        raise ValueError(f"measures: expected ablation, tasks, benchmarks or libero, got {measures!r}")

    def _base(self, base: str, stage: str) -> Path:
        return self.output / self.name / base / stage


@dataclass(frozen=True)
class FullScale(Scale):
    """Fine-tuning of a pretrained SyVLA-3B as in Table 7, and the simulators and benchmarks as they are.

    Attributes:
        model_path: Pretrained SyVLA, after the first stage of training.
        regression_model_path: One with `action_head="l1_regression"`, for that baseline.
        multimodal_datasets: The data mixed in.
        libero_datasets: LIBERO's demonstrations as LeRobot data sets (paths, Hub ids or JSON objects), for Table 8.
        data_root: Folder of the VLM benchmarks; None: the Hub.
        accelerate_config: File of `accelerate launch`.
    """

    model_path: str | None = None
    regression_model_path: str | None = None
    multimodal_datasets: list[str] = field(default_factory=list)
    libero_datasets: list[str] = field(default_factory=list)
    data_root: str | None = None
    accelerate_config: str = "training/accelerate_configs/zero2.yaml"

    name = "full"
    label = "full: 3B, simulator"
    separate = True

    def _data(self, measures: str) -> str:
        return {"tasks": "tasks", "libero": "libero"}.get(measures, "calculating")

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
            missing.append("--libero-datasets: LIBERO's demonstrations as LeRobot data sets")
        return missing

    def prepare(self, arms: Sequence[str], measures: str) -> list[Job]:
        data = self._data(measures)
        tasks = {"tasks": list(TASKS.values()), "calculating": ["calculating"], "libero": []}[data]
        return [self._record(data, tasks, 300, "--image-size", "224", "--videos")] if tasks else []

    def train(self, arm: str, seed: int, measures: str) -> Job:
        paths = {"flow": self.model_path or "MODEL_PATH", "regression": self.regression_model_path or "REGRESSION"}
        options = {
            "config": f"{_RECIPES}/finetune.yaml",
            "model_path": paths[ARMS[arm].base],
            "robot_datasets": self.robot_data(measures),
            "multimodal_datasets": list(self.multimodal_datasets) or ["MULTIMODAL_DATASETS"],
            **self._arm_options(arm, seed),
        }
        launcher = ("accelerate", "launch", "--config_file", self.accelerate_config)
        return self._finetune(self.run_folder(arm, seed, measures) / "checkpoint", options, launcher)

    def measure(self, arm: str, seed: int, measures: str) -> dict[str, Job]:
        run = self.run_folder(arm, seed, measures)
        loop = ("--batch-size", "20", "--replan-steps", "10", "--env-option", "image_size=224", "--dtype", "bfloat16")
        if measures == "ablation":
            return {"ablation": self._closed_loop(run, "closed_loop", ["calculating"], 100, arm, *loop)}
        if measures == "tasks":
            return self._splits(run, arm, 100, loop)
        if measures == "libero":
            tasks = [f"{suite}_{number}" for suite in SUITES.values() for number in range(10)]
            options = ("--env", "libero", "--batch-size", "10", "--replan-steps", "10", "--dtype", "bfloat16")
            return {"libero": self._closed_loop(run, "libero", tasks, 50, arm, *options)}
        options = ("--dtype", "bfloat16", *(() if self.data_root is None else ("--data-root", self.data_root)))
        return {"benchmarks": self._benchmarks(run, options)}
