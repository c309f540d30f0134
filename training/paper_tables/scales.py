"""What the scales of `syvla-tables` share (`table_scale_tiny`, `table_scale_full`).

A scale turns arms and measurements into jobs: what has to be prepared, how an arm is trained, how it is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syvla.training.demo import CAMERAS, EMBODIMENT

from .jobs import Job, option_words
from .plans import ARMS
from .rl_stage import RLStage

TASKS = {"Task 1": "place", "Task 2": "calculating", "Task 3": "bagging"}
"""The paper's tasks to ours; `place` stands in for folding, which needs cloth."""

ALONE = ("calculating", "bagging")
"""Tasks that are also measured alone, each after an RL stage of its own (Table 10)."""

SUITES = {"Spatial": "libero_spatial", "Object": "libero_object", "Goal": "libero_goal", "Long": "libero_10"}
EVAL, EVAL_VLM = "syvla.evaluation.closed_loop", "syvla.evaluation.vlm_benchmarks.evaluate_vlm"
RECIPES = "training/recipes"
FURTHER_SEED = ("--seed", "100000")  # of further demonstrations: other starts than those that all runs learn from
STATISTICS_TOLERANCE = 10.0
"""Where a checkpoint that learned several tasks goes on with one of them. At tiny scale its statistics are those of `lift`."""


@dataclass(frozen=True)
class Scale:
    """Jobs at one scale.

    Attributes:
        output: Folder of everything.
        train_steps: Optimizer steps of each run; None: the recipe's.
        episodes: Evaluation episodes per task; None: the scale's own.
        demonstrations: Recorded per task; None: the scale's own.
        rl_updates, rl_rollouts: Updates of an RL run and rollouts of each; None: the scale's own.
        rl_steps: Optimizer steps of an update; None: the recipe's.
        rollout_steps: Control steps after which a rollout has failed; None: the environment's.
        value_steps: Optimizer steps of the value model's warm-up; None: the recipe's.
    """

    output: Path
    train_steps: int | None = None
    episodes: int | None = None
    demonstrations: int | None = None
    rl_updates: int | None = None
    rl_rollouts: int | None = None
    rl_steps: int | None = None
    rollout_steps: int | None = None
    value_steps: int | None = None

    name = ""
    label = ""
    separate = False  # whether measurements run in processes of their own
    rl_budget = (0, 0)  # updates of an RL run and rollouts of each, by default
    rl_differs = ""  # from the paper's RL

    def preparation_jobs(self, arms: Sequence[str], measures: str) -> list[Job]:
        """Jobs that make what the arms start from, in order: demonstrations and base checkpoints."""
        raise NotImplementedError

    def train(self, arm: str, seed: int, measures: str) -> Job:
        """The job that makes an arm's policy."""
        return self.training(arm, seed, measures)[-1]

    def training(self, arm: str, seed: int, measures: str) -> list[Job]:
        """Every job that an arm's policy needs beyond `preparation_jobs`; the last of them makes the policy."""
        start, rl = ARMS[arm].start, ARMS[arm].rl
        if start is None or rl is None:
            before = [] if start is None else self.training(start, seed, measures)
            return [*before, self._imitate(arm, seed, measures)]
        stage = self.rl_stage(start, seed, measures)
        output = self.run_folder(arm, seed, measures) / "checkpoint"
        return [*self.training(start, seed, measures), *stage.jobs(rl, seed, output, ARMS[arm].thinks)]

    def _imitate(self, arm: str, seed: int, measures: str) -> Job:
        """Training by imitation."""
        raise NotImplementedError

    def rl_stage(self, start: str, seed: int, measures: str) -> RLStage:
        """The stage of RL from the policy of an arm."""
        raise NotImplementedError

    def measure(self, arm: str, seed: int, measures: str) -> dict[str, Job]:
        """The measurements of a trained arm by name."""
        raise NotImplementedError

    def problems(self, arms: Sequence[str], measures: str) -> list[str]:
        """What the user has to bring before this can run."""
        return []

    def run_folder(self, arm: str, seed: int, measures: str) -> Path:
        """Folder of one run; tables that train on the same data share it, and RL has one for each task."""
        name = arm if ARMS[arm].rl is None else f"{arm}_{self._rl_task(measures)[0]}"
        return self._runs(measures) / name / f"seed{seed}"

    def _runs(self, measures: str) -> Path:
        return self.output / self.name / "runs" / self._data(measures)

    def _data(self, measures: str) -> str:
        """Name of the demonstrations that a measurement needs."""
        raise NotImplementedError

    def _rl_task(self, measures: str) -> tuple[str, tuple[str, ...]]:
        """Task of the RL stage before a measurement, and options of its environment."""
        raise NotImplementedError

    def robot_data(self, measures: str) -> list[str]:
        """Data specifications of the demonstrations, as the training scripts take them."""
        return [self._robot_data(self._data(measures))]

    def _record(self, name: str, tasks: Sequence[str], episodes: int, *options: str) -> Job:
        return self._record_exactly(name, tasks, self.demonstrations or episodes, *options)

    def _record_exactly(self, name: str, tasks: Sequence[str], episodes: int, *options: str) -> Job:
        output = self.output / self.name / "data" / name
        words = [word for task in tasks for word in ("--task", task)]
        arguments = (*words, "--episodes", str(episodes), *options, "--output", str(output))
        arguments = ("--env", "tabletop", *arguments)
        return Job("syvla.evaluation.demonstration_recording", arguments, output, separate=self.separate)

    def demonstrations_of(self, arm: str, measures: str) -> list[str]:
        """Data specifications of what an arm learns from by imitation."""
        further = [] if ARMS[arm].start is None else [self._robot_data(f"{self._data(measures)}_further")]
        return [*self.robot_data(measures), *further]

    def _robot_data(self, name: str) -> str:
        path = str(self.output / self.name / "data" / name)
        return json.dumps({"path": path, "embodiment": EMBODIMENT, "cameras": CAMERAS})

    def _closed_loop(self, run: Path, name: str, tasks: Sequence[str], episodes: int, arm: str, *options: str) -> Job:
        words = [word for task in tasks for word in ("--task", task)]
        arguments = ("--model", str(run / "checkpoint"), *words, "--episodes", str(self.episodes or episodes), *options)
        think = ("--think",) if ARMS[arm].thinks else ()
        output = run / name
        arguments = (*arguments, *think, "--quiet", "--output", str(output))
        return Job(EVAL, arguments, output, "summary.json", keeps_partial=True, separate=self.separate)

    def _benchmarks(self, run: Path, options: tuple[str, ...]) -> Job:
        output = run / "benchmarks"
        arguments = ("--model", str(run / "checkpoint"), *options, "--quiet", "--output", str(output))
        return Job(EVAL_VLM, arguments, output, "summary.json", separate=self.separate)

    def _splits(self, run: Path, arm: str, episodes: int, loop: tuple[str, ...]) -> dict[str, Job]:
        """Three tasks in domain and out of distribution."""
        tasks = list(TASKS.values())
        return {
            "in_domain": self._closed_loop(run, "in_domain", tasks, episodes, arm, *loop),
            "ood": self._closed_loop(run, "ood", tasks, episodes, arm, *loop, "--env-option", "split=ood"),
        }

    def _finetune(
        self,
        output: Path,
        options: Mapping[str, Any],
        launcher: tuple[str, ...] = (),
        makes_stale: tuple[Path, ...] = (),
    ) -> Job:
        arguments = (*option_words(options), "--output_dir", str(output))
        return Job("syvla.training.finetune", arguments, output, launcher=launcher, makes_stale=makes_stale)

    def _stale(self, arm: str, seed: int, measures: str) -> tuple[Path, ...]:
        """What is made out of an arm's policy: its measurements and value model, and the runs that go on from it."""
        names = [arm]
        for name, other in ARMS.items():
            if other.start == arm:
                names += [name] if other.rl is None else [f"{name}_{task}" for task in ("lift", *ALONE)]
        return tuple(self._runs(measures) / name / f"seed{seed}" for name in names)

    @property
    def budget(self) -> tuple[int, int]:
        """Updates of an RL run, and rollouts of each."""
        updates, rollouts = self.rl_budget
        return self.rl_updates or updates, self.rl_rollouts or rollouts

    def _rl_options(self, config: str) -> dict[str, Any]:
        updates, rollouts = self.budget
        steps = {} if self.rl_steps is None else {"steps_per_update": self.rl_steps}
        return {"config": config, "max_rl_updates": updates, "rollouts_per_update": rollouts, **steps}

    def _rl_robot(self, measures: str, *options: str) -> tuple[str, ...]:
        limit = () if self.rollout_steps is None else ("--env-option", f"max_steps={self.rollout_steps}")
        return ("--env", "tabletop", *self._rl_task(measures)[1], *limit, *options)

    def _value_options(self, **options: Any) -> dict[str, Any]:
        return {**options, **({} if self.value_steps is None else {"max_steps": self.value_steps})}

    def _further_demonstrations(
        self, arms: Sequence[str], measures: str, tasks: Sequence[str], *options: str
    ) -> list[Job]:
        """Recording of further demonstrations, where an arm goes on by imitation: as many as RL makes rollouts."""
        if not any(ARMS[arm].start and ARMS[arm].rl is None for arm in arms):
            return []
        updates, rollouts = self.budget
        name = f"{self._data(measures)}_further"
        return [self._record_exactly(name, tasks, updates * rollouts, *FURTHER_SEED, *options)]

    def _arm_options(self, arm: str, seed: int) -> dict[str, Any]:
        options: dict[str, Any] = {"model_overrides": dict(ARMS[arm].overrides), "seed": seed, **ARMS[arm].options}
        if self.train_steps is not None:
            options["max_steps"] = self.train_steps
        return options
