"""What `benchmarks.rl_ablation` runs: the steps that all arms share, and one job per arm and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rl_ablation_run import ARMS, command_words, robot_data
from syvla.training.paper_tables.jobs import Job
from syvla.training.paper_tables.scales import STATISTICS_TOLERANCE
from syvla.training.paper_tables.tiny_scale import TinyScale

CHECK_RUN = 900
"""Evaluation run on whose starts imitation learning is measured beforehand; no arm is measured on them."""

TUNING_RUN = 901
"""Evaluation run on whose starts learning rates are compared."""

TUNING_SEEDS = (100, 101)
TUNING_ARMS = ("similar", "random", "imitation")
"""Those of the two primary contrasts: none of them gets the learning rate that suits another one best."""

LEARNING_RATES = (3e-5, 1e-4, 3e-4)

VALUE_MODEL = '{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32}'
"""Of the size of `SyVLAValueConfig.tiny()`."""

FIRST_ARMS = ("il", "similar", "random", "none", "gae", "imitation", "recap", "nft")
"""Arms of `LIFT` by default."""


@dataclass(frozen=True)
class Recording:
    """Demonstrations of one task.

    Attributes:
        task: Of the tabletop.
        episodes: How many.
        options: Further words of `syvla-record`.
    """

    task: str
    episodes: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Design:
    """What is measured.

    Attributes:
        name: Of the design, and of its results after `rl_ablation`.
        environment: For people.
        run: Options of `benchmarks.rl_ablation_run`.
        seeds: Training seeds.
        arms: Those that run.
        recordings: Demonstrations by name; none: those of the base of `syvla-tables --scale tiny`, as is the policy.
        experts: Those of them that expert samples are drawn from.
        base: Options of `syvla-finetune` for the policy of imitation learning, where there are recordings.
        il_range: Success of imitation learning that leaves room above and below.
    """

    name: str
    environment: str
    run: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(ARMS)
    recordings: Mapping[str, Recording] = field(default_factory=dict)
    experts: tuple[str, ...] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    il_range: tuple[float, float] = (0.4, 0.8)

    @property
    def results(self) -> str:
        return f"rl_ablation{'' if self.name == 'lift' else '_' + self.name}"


def _unseen(name: str, *, think: bool) -> Design:
    thoughts = "with" if think else "without"
    return Design(
        name,
        f"tabletop place at positions that 10 of 360 demonstrations show, {thoughts} thoughts, 32 x 32 pixels",
        run={
            "task": "place",
            "split": "ood",
            "max_steps": 80,
            "updates": 5,
            "rollouts": 16,
            "steps": 40,
            "episodes": 200,
            "curve_episodes": 50,
            "starts": 0,
            "value_fit_max_steps": 200,
            "decoupling": 1,
            "think": int(think),
            "takeover_after": 40,
            "same_task": 0,  # there are 30 instructions, of colors: any demonstration of place will do
        },
        seeds=tuple(range(14)),
        recordings={
            "place": Recording("place", 110),
            "place_unseen": Recording("place", 10, ("--seed", "100000", "--env-option", "split=ood")),
            "lift": Recording("lift", 120),
            "bar_lift": Recording("bar_lift", 120),
        },
        experts=("place", "place_unseen"),
        base={
            "recompute_statistics": True,
            "max_steps": 6000,
            "final_learning_rate": 1e-6,
            "ignore_thoughts": not think,
        },
        il_range=(0.1, 0.8),
    )


DESIGNS = {
    design.name: design
    for design in (
        Design("lift", "tabletop lift, one object, 32 x 32 pixels", arms=FIRST_ARMS),
        _unseen("unseen", think=False),
        _unseen("unseen_thoughts", think=True),
    )
}
"""`lift` is what the committed figures were measured with. `unseen` asks where similar samples can matter: rollouts leave the
bulk of the demonstrations. The value model is fitted before each update, decoupling is on, and all seeds and arms share 200
starts."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        output: Folder of everything but the shared base.
        tables: Folder of `syvla-tables`, whose tiny base is used or made there.
        arms, seeds: Which runs; none: the design's.
        value_steps: Optimizer steps of the value model's warm-up.
        run: Options of `benchmarks.rl_ablation_run` that differ from the design's.
        base: Fields of [`TinyScale`], or options of `syvla-finetune`, that differ.
        check: Whether imitation learning is measured and has to leave room above and below.
        design: See [`Design`].
        demonstrations: Episodes of each recording; None: the design's.
    """

    output: Path
    tables: Path
    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    value_steps: int = 200
    run: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    check: bool = True
    design: Design = DESIGNS["lift"]
    demonstrations: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Of the runs."""
        return {**self.design.run, **self.run}

    @property
    def datasets(self) -> list[Path]:
        if not self.design.recordings:
            return [self.tables / "tiny" / "data" / "lift"]
        return [self.output / "data" / name for name in self.design.recordings]

    @property
    def experts(self) -> list[Path]:
        names = self.design.experts
        return [folder for folder in self.datasets if not names or folder.name in names]

    @property
    def il(self) -> Path:
        return self.output / "il" if self.design.recordings else self.tables / "tiny" / "flow" / "pretrained"

    def preparation(self) -> list[Job]:
        """Demonstrations, policy, value model and vectors, in order."""
        jobs = self._own_base() if self.design.recordings else self._tables_base()
        data = [robot_data(folder, thoughts=bool(self.options.get("think"))) for folder in self.datasets]
        value = {
            "policy_path": self.il,
            "output_dir": self.output / "value",
            "decision_steps": self.options.get("replan_steps", 4),
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
            options |= (
                {"statistics_tolerance": STATISTICS_TOLERANCE} if self.design.recordings and name == "value" else {}
            )
            own = [robot for robot, folder in zip(data, self.datasets, strict=True) if folder in self.experts]
            options |= {"robot_datasets": own if name == "vectors" else data}
            jobs.append(Job(module, tuple(command_words(options)), self.output / name))
        if self.check:
            jobs.append(self._job("il", CHECK_RUN, "checked", {"starts": CHECK_RUN}))
        return jobs

    def _tables_base(self) -> list[Job]:
        scale = TinyScale(output=self.tables, **self.base)
        needed = ("lift", "synthetic", "random", "pretrained")  # the rest is for other tables
        return [job for job in scale.preparation_jobs(("all",), "ablation") if job.output.name in needed]

    def _own_base(self) -> list[Job]:
        jobs = []
        for (_, recording), folder in zip(self.design.recordings.items(), self.datasets, strict=True):
            episodes = recording.episodes if self.demonstrations is None else self.demonstrations
            words = ("--env", "tabletop", "--task", recording.task, "--episodes", str(episodes), *recording.options)
            jobs.append(Job("syvla.evaluation.demonstration_recording", (*words, "--output", str(folder)), folder))
        random = self.output / "random"
        making = ("random", "--action-head", "flow_matching", *map(str, self.datasets[:1]), str(random))
        jobs.append(Job("syvla.training.paper_tables.tiny_base", making, random))
        thoughts = bool(self.options.get("think"))
        options = {
            "config": "training/recipes/demo.yaml",
            "model_path": random,
            "robot_datasets": [robot_data(folder, thoughts=thoughts) for folder in self.datasets],
            "disable_tqdm": True,
            **self.design.base,
            **self.base,
            "output_dir": self.il,
        }
        jobs.append(Job("syvla.training.finetune", tuple(command_words(options)), self.il))
        return jobs

    def runs(self) -> dict[tuple[str, int], Job]:
        """The run of each arm and seed; seeds after one another, so that an interrupted benchmark has whole ones."""
        arms, seeds = self.arms or self.design.arms, self.seeds or self.design.seeds
        return {(arm, seed): self._job(arm, seed) for seed in seeds for arm in arms}

    def tuning(self) -> dict[tuple[float, str, int], Job]:
        """Runs that a learning rate is chosen by, with seeds and starts of their own."""
        return {
            (rate, arm, seed): self._job(
                arm, seed, f"tuning/{rate:g}", {"learning_rate": rate, "starts": TUNING_RUN, "curve_episodes": 0}
            )
            for seed in TUNING_SEEDS
            for rate in LEARNING_RATES
            for arm in TUNING_ARMS
        }

    def _job(self, arm: str, seed: int, folder: str = "runs", changes: Mapping[str, Any] | None = None) -> Job:
        output = self.output / folder / arm / f"seed{seed}"
        shared = {"il": self.il, "value": self.output / "value", "vectors": self.output / "vectors"}
        data = {"dataset": self.experts, **({"all_data": self.datasets} if self.design.experts else {})}
        options = {"arm": arm, "seed": seed, **shared, **data, "output": output, **self.options}
        words = tuple(command_words({**options, **(changes or {})}))
        return Job("benchmarks.rl_ablation_run", words, output, "result.json")
