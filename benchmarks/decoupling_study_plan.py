"""What `benchmarks.decoupling_study` runs: recipe, arms, seeds, and the rule that a reported run needs a frozen recipe."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.decoupling_study_language import TASKS
from syvla.evaluation.environments.base import EVALUATION_SEED_OFFSET

RECIPE = Path(__file__).with_name("decoupling_study_recipe.json")
STATUSES = ("tuning", "frozen")


@dataclass(frozen=True)
class Recipe:
    """Size, data and schedule, the same for all arms.

    Attributes:
        status: "tuning", or "frozen" for reported runs.
        demonstrations: Episodes of each task.
        disturbance: Of the demonstrations [m], see `decoupling_study_scenes.record`.
        max_steps: Control steps of an episode, at 10 Hz.
        num_query_tokens, chunk_size: Of the model; arms change the former.
        replan_steps: Control steps after which the expert makes another chunk.
        flow_steps: Evaluations of the flow for a chunk.
        vlm_width, vlm_layers, expert_width, expert_layers: Of the two transformers.
        base_steps, base_texts, base_learning_rate: Of the language model's own training, see `decoupling_study_base`.
        train_steps, learning_rate: Of AdamW, one cycle.
        texts_per_step, frames_per_text: A step reads so many instructions, and so many frames of an episode for each.
        word_noise: Of the instructions, see `decoupling_study_language.disturbed_prompt`.
        lm_loss_weight: Weight of the loss of thoughts.
        seeds, further_seeds: Training seeds of the main arms, and of the others.
        starts: Shared evaluation starts, in domain and once more out of distribution.
        held_out, held_out_frames: Episodes of each task for the mechanism, and frames of each.
    """

    status: str
    demonstrations: Mapping[str, int]
    disturbance: float
    max_steps: int
    num_query_tokens: int
    chunk_size: int
    replan_steps: int
    flow_steps: int
    vlm_width: int
    vlm_layers: int
    expert_width: int
    expert_layers: int
    base_steps: int
    base_texts: int
    base_learning_rate: float
    train_steps: int
    texts_per_step: int
    frames_per_text: int
    frame_power: float
    learning_rate: float
    lm_loss_weight: float
    word_noise: float
    seeds: int
    further_seeds: int
    starts: int
    held_out: int
    held_out_frames: int

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status: expected one of {list(STATUSES)}, got {self.status!r}")
        if set(self.demonstrations) != set(TASKS):
            raise ValueError(f"demonstrations: expected the tasks {list(TASKS)}, got {list(self.demonstrations)}")
        for name in ("frame_power", "learning_rate", "base_learning_rate"):
            if not 0 < getattr(self, name) < 10:
                raise ValueError(f"{name}: expected a number above 0 and below 10, got {getattr(self, name)!r}")
        for name, limit in (("disturbance", 1.0), ("lm_loss_weight", 100.0), ("word_noise", 0.5)):
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name}: expected a number from 0 to {limit:g}, got {getattr(self, name)!r}")
        numbers = {name: getattr(self, name) for name, kind in _types().items() if kind == "int"}
        for name, value in {**numbers, **{f"demonstrations.{k}": v for k, v in self.demonstrations.items()}}.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if self.replan_steps > self.chunk_size:
            raise ValueError(f"replan_steps: expected at most chunk_size={self.chunk_size}, got {self.replan_steps}")

    @classmethod
    def load(cls, path: Path = RECIPE, changes: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of a file, with some fields changed.

        Raises:
            ValueError: A field is missing, unknown or impossible.
        """
        fields = {**json.loads(path.read_text(encoding="utf-8")), **(changes or {})}
        if unknown := sorted(set(fields) - set(_types())):
            raise ValueError(f"{path.name}: unknown fields {unknown}; known are {sorted(_types())}")
        if missing := sorted(set(_types()) - set(fields)):
            raise ValueError(f"{path.name}: lacks the fields {missing}")
        return cls(**fields)

    @property
    def digest(self) -> str:
        """Of all that a run's outcome depends on; whether it is frozen, and how many seeds there are, is not."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("status", "seeds", "further_seeds")}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _types() -> dict[str, str]:
    return {item.name: str(item.type) for item in dataclasses.fields(Recipe)}


@dataclass(frozen=True)
class Arm:
    """What one arm changes.

    Attributes:
        label: For people.
        thoughts: Whether the VLM thinks before it acts, in training and evaluation.
        model: Fields of the model's configuration.
        main: Whether it has all seeds.
    """

    label: str
    thoughts: bool = True
    model: Mapping[str, Any] = field(default_factory=dict)
    main: bool = False


def _arm(label: str, *, on: bool = True, thoughts: bool = True, main: bool = False, **model: Any) -> Arm:
    return Arm(label, thoughts, {"intention_decoupling": on, **model}, main)


MATCHED = "matched"
"""In place of a number for `query_noise`: as much expected squared change as zeroing one state."""

ARMS: dict[str, Arm] = {
    "weakest": _arm("thoughts, decoupling", main=True),
    "off": _arm("thoughts, no decoupling", on=False, main=True),
    "silent_weakest": _arm("no thoughts, decoupling", thoughts=False, main=True),
    "silent_off": _arm("no thoughts, no decoupling", on=False, thoughts=False, main=True),
    "random": _arm("a random state masked", main=True, decoupling_choice="random"),
    "strongest": _arm("the strongest masked", decoupling_choice="strongest"),
    "quantile_20": _arm("quantile 0.2", decoupling_quantile=0.2),
    "noise": _arm("noise, no mask", on=False, query_noise=MATCHED),
    "queries_5": _arm("5 query tokens", num_query_tokens=5),
    "queries_20": _arm("20 query tokens", num_query_tokens=20),
}


@dataclass(frozen=True)
class Phase:
    """Where seeds begin. Phases share none, so that nothing that a recipe was tuned on is reported.

    Attributes:
        training: First training seed: initial weights, order of the samples, noise.
        demonstrations, held_out: First environment seeds of what is trained on, and of the mechanism's episodes.
        evaluation: First environment seed of the starts.
    """

    name: str
    training: int
    demonstrations: int
    held_out: int
    evaluation: int


PHASES = {
    "reported": Phase("reported", 0, 0, 200_000, EVALUATION_SEED_OFFSET),
    "tuning": Phase("tuning", 1000, 400_000, 600_000, 2 * EVALUATION_SEED_OFFSET),
}

SMOKE: dict[str, Any] = {
    "demonstrations": dict.fromkeys(TASKS, 6), "max_steps": 12, "vlm_width": 32, "expert_width": 16, "expert_layers": 2,
    "base_steps": 2, "base_texts": 3, "train_steps": 4, "texts_per_step": 6, "frames_per_text": 2, "seeds": 2,
    "further_seeds": 1, "starts": 12, "held_out": 8, "held_out_frames": 2, "flow_steps": 2,
}  # fmt: skip
"""Changes that make every part run in seconds; nothing is learned."""


def runs(recipe: Recipe, arms: Sequence[str] = tuple(ARMS)) -> list[tuple[str, int]]:
    """Arm and number of the seed of every run; seeds one after another, so that an interrupted study has whole ones."""
    return [
        (arm, seed)
        for seed in range(max(recipe.seeds, recipe.further_seeds))
        for arm in arms
        if seed < (recipe.seeds if ARMS[arm].main else recipe.further_seeds)
    ]


def frozen_commit(recipe: Recipe, path: Path = RECIPE) -> str:
    """The commit that the recipe was frozen in.

    Raises:
        RuntimeError: The recipe is not frozen, or it or the study's own code is not as committed.
    """
    if recipe.status != "frozen":
        raise RuntimeError(
            f'{path.name}: its status is {recipe.status!r}; reported runs need a recipe with "status": "frozen" that is '
            "committed. Tune with --tune first"
        )
    code = sorted(path.parent.glob("decoupling_study*.py"))
    if changed := _git(path.parent, "status", "--porcelain", "--untracked-files=all", "--", str(path), *map(str, code)):
        raise RuntimeError(
            f"reported runs need the recipe and the study's code as they are committed; these differ from it:\n{changed}\n"
            "Commit them first"
        )
    commit = _git(path.parent, "log", "-1", "--format=%H", "--", str(path))
    if not commit:
        raise RuntimeError(f"{path.name}: no commit has it; commit it before the first reported run")
    return commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or error
        raise RuntimeError(f"cannot ask git whether the recipe is committed: {reason}") from error
    return done.stdout.strip()
