"""The tiny scale of `syvla-tables`, which runs on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .jobs import Job
from .plans import ARMS
from .rl_stage import RLStage
from .scales import ALONE, RECIPES, STATISTICS_TOLERANCE, TASKS, Scale

TWO_OBJECTS = ("--env-option", "distractors=1")
"""With a second object on the table only the instruction tells which to lift, so that the action expert, which does not read
it, depends on the query states."""


@dataclass(frozen=True)
class TinyScale(Scale):
    """1.2 million parameters, a simulator, synthetic benchmarks; everything is made here.

    Attributes:
        base_steps: Optimizer steps of the common base; None: the recipe's.
        chats: Chats of the multi-modal data.
        rows: Rows of each synthetic benchmark; a multiple of four keeps HallusionBench's sets whole.
    """

    base_steps: int | None = None
    chats: int = 6000
    rows: int = 120

    name = "tiny"
    label = "tiny: 1.2 M parameters, simulator, CPU"
    rl_budget = (2, 16)
    rl_differs = (
        "Similar samples are found by the features of the policy's own image encoder, not CLIP's. There is no stop at a KL and "
        "no guard that would hold back a collapsed policy, so that all rows take equally many steps."
    )

    def _data(self, measures: str) -> str:
        return "tasks" if measures in ("tasks", *TASKS.values()) else "two_objects"

    def _rl_task(self, measures: str) -> tuple[str, tuple[str, ...]]:
        return (measures, ()) if measures in ALONE else ("lift", TWO_OBJECTS)

    def problems(self, arms: Sequence[str], measures: str) -> list[str]:
        if measures in ("ablation", "tasks", "benchmarks", *ALONE):
            return []
        return ["--scale full: what it measures has no tiny counterpart that fits a CPU"]

    def preparation_jobs(self, arms: Sequence[str], measures: str) -> list[Job]:
        root = self.output / self.name
        data = self._data(measures)
        jobs = [self._record("lift", ["lift"], 120)]  # of the base, which is the same for every table
        if data == "tasks":
            jobs.append(self._record(data, list(TASKS.values()), 120))
        else:
            jobs.append(self._record(data, ["lift"], 240, *TWO_OBJECTS))
        if measures in ALONE:  # the same episodes as among those of the three tasks
            jobs.append(self._record(measures, [measures], 120))
        jobs += self._further_demonstrations(arms, measures, ["lift"], *TWO_OBJECTS)
        sizes = ("--rows", str(self.rows), "--train-rows", str(self.chats))
        # In the protocol in whose words the committed tables were made.
        synthetic = ("--output", str(root / "synthetic"), *sizes, "--protocol", "lmms-eval")
        jobs.append(Job("syvla.evaluation.vlm_benchmarks.synthetic_data", synthetic, root / "synthetic"))
        for base in dict.fromkeys(ARMS[arm].base for arm in arms):
            head = "l1_regression" if base == "regression" else "flow_matching"
            random, pretrained, start = (self._base(base, stage) for stage in ("random", "pretrained", "base"))
            making = ("random", "--action-head", head, str(root / "data" / "lift"), str(random))
            jobs.append(Job("syvla.training.paper_tables.tiny_base", making, random))
            options = {
                "config": f"{RECIPES}/tables/tiny_base.yaml",
                "model_path": str(random),
                "robot_datasets": self._robot_data("lift"),
                "multimodal_datasets": str(root / "synthetic" / "train" / "chats.jsonl"),
                "disable_tqdm": True,
                **({} if self.base_steps is None else {"max_steps": self.base_steps}),
            }
            jobs.append(self._finetune(pretrained, options))
            jobs.append(
                Job("syvla.training.paper_tables.tiny_base", ("fresh-queries", str(pretrained), str(start)), start)
            )
        return jobs

    def _imitate(self, arm: str, seed: int, measures: str) -> Job:
        start, further = self._base(ARMS[arm].base, "base"), {}
        if (before := ARMS[arm].start) is not None:  # as many steps as RL takes
            start = self.run_folder(before, seed, measures) / "checkpoint"
            further = {"max_steps": self.budget[0] * (self.rl_steps or 40), "warmup_steps": 0}
        options = {
            "config": f"{RECIPES}/tables/tiny_run.yaml",
            "model_path": str(start),
            "robot_datasets": self.demonstrations_of(arm, measures),
            "multimodal_datasets": str(self.output / self.name / "synthetic" / "train" / "chats.jsonl"),
            "disable_tqdm": True,
            **further,
            **self._arm_options(arm, seed),
        }
        output = self.run_folder(arm, seed, measures) / "checkpoint"
        return self._finetune(output, options, makes_stale=self._stale(arm, seed, measures))

    def rl_stage(self, start: str, seed: int, measures: str) -> RLStage:
        run, task = self.run_folder(start, seed, measures), self._rl_task(measures)[0]
        return RLStage(
            start=run,
            task=task,
            data=[self._robot_data(task if measures in ALONE else self._data(measures))],
            encoder=f"policy:{run / 'checkpoint'}",
            trainer={**self._rl_options(f"{RECIPES}/tables/tiny_rl.yaml"), "disable_tqdm": True},
            value=self._value_options(config=f"{RECIPES}/tables/tiny_value.yaml", decision_steps=4, disable_tqdm=True),
            robot=self._rl_robot(measures, "--replan-steps", "4", "--max-new-tokens", "20", "--server-device", "cpu"),
            tolerance=STATISTICS_TOLERANCE if measures in ALONE else None,
        )

    def measure(self, arm: str, seed: int, measures: str) -> dict[str, Job]:
        run = self.run_folder(arm, seed, measures)
        loop = ("--batch-size", "20", "--replan-steps", "4", "--max-new-tokens", "20", "--device", "cpu")
        if measures == "ablation":
            return {"ablation": self._closed_loop(run, "closed_loop", ["lift"], 60, arm, *loop, *TWO_OBJECTS)}
        if measures in ALONE:
            return {measures: self._closed_loop(run, measures, [measures], 60, arm, *loop)}
        if measures == "tasks":
            return self._splits(run, arm, 60, loop)
        if measures == "benchmarks":
            data = self.output / self.name / "synthetic" / "benchmarks"
            protocol = ("--protocol", "lmms-eval", "--image-budget", "checkpoint")
            options = ("--data-root", str(data), "--max-new-tokens", "16", "--device", "cpu", *protocol)
            return {"benchmarks": self._benchmarks(run, options)}
        if measures == "libero":
            return {}
        raise ValueError(f"measures: expected ablation, tasks, a task, benchmarks or libero, got {measures!r}")

    def _base(self, base: str, stage: str) -> Path:
        return self.output / self.name / base / stage
