"""One run of `benchmarks.decoupling_study`: one arm with one seed, trained, evaluated and looked into."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.decoupling_study_base import prepare_base, start_from
from benchmarks.decoupling_study_closed_loop import SPLITS, closed_loop, starts
from benchmarks.decoupling_study_language import TASKS
from benchmarks.decoupling_study_mechanism import held_out, measure, norms_of, states_of
from benchmarks.decoupling_study_plan import ARMS, PHASES, Phase, Recipe
from benchmarks.decoupling_study_policy import Batches, make_model, train
from benchmarks.decoupling_study_scenes import Demonstrations, cached
from syvla.durable_files import write_json

MASK_QUANTILE = 0.05
"""Of the masks that are looked into, the same for all arms."""


LONGEST = 75
"""Control steps within which the scripted experts succeed even when they are disturbed."""


def demonstrations(recipe: Recipe, phase: Phase, folder: Path) -> tuple[Demonstrations, Demonstrations]:
    """To train on, and held out; recorded once for all runs whose recipes have the same data.

    Args:
        folder: Of the runs; the recordings lie beside it.
    """
    found = []
    held_out_counts = dict.fromkeys(recipe.demonstrations, recipe.held_out)
    for counts, first_seed, disturbance in (
        (recipe.demonstrations, phase.demonstrations, recipe.disturbance),
        (held_out_counts, phase.held_out, 0.0),
    ):
        numbers = "_".join(str(counts[task]) for task in TASKS)
        path = folder.parent / "demonstrations" / f"{first_seed}_{numbers}_{disturbance:g}.npz"
        found.append(cached(path, {task: counts[task] for task in TASKS}, first_seed, LONGEST, disturbance))
    return found[0], found[1]


def run(recipe: Recipe, phase: str, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains and measures; the same arguments give the same outcomes.

    Args:
        seed: Number of the training seed within the phase, from 0.
        folder: Of the runs, see `demonstrations`.
    """
    torch.set_num_threads(1)
    chosen, place = ARMS[arm], PHASES[phase]
    clock = Clock()
    data, apart = demonstrations(recipe, place, folder)
    frames = held_out(apart, recipe)
    clock.lap("demonstrations")
    training_seed = place.training + seed
    model = make_model(recipe, chosen, training_seed)
    start_from(model, prepare_base(recipe, training_seed, folder))
    clock.lap("base")
    halfway: list[Any] = []

    def at(step: int) -> None:
        if step == recipe.train_steps // 2:
            halfway.append(norms_of(model, states_of(model, chosen, frames), frames))

    losses = train(model, Batches(data, recipe, chosen, training_seed), recipe, at)
    clock.lap("training")
    outcomes = {split: closed_loop(model, recipe, starts(recipe, place, split), chosen.thoughts) for split in SPLITS}
    clock.lap("evaluation")
    mechanism = measure(model, chosen, frames, halfway[0] if halfway else None, MASK_QUANTILE)
    clock.lap("mechanism")
    return {
        "arm": arm,
        "seed": seed,
        "phase": phase,
        "recipe": recipe.digest,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "losses": losses,
        **outcomes,
        "mechanism": mechanism,
        "cpu_seconds": clock.cpu,
        "seconds": clock.wall,
    }


class Clock:
    """Processor and wall seconds of the parts of a run."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}
        self._last = (time.process_time(), time.monotonic())

    def lap(self, name: str) -> None:
        """The part that ends now."""
        now = (time.process_time(), time.monotonic())
        self.cpu[name], self.wall[name] = (round(b - a, 1) for a, b in zip(self._last, now, strict=True))
        self._last = now


def result_path(folder: Path, arm: str, seed: int) -> Path:
    return folder / "runs" / arm / f"seed{seed}.json"


def finished(folder: Path, recipe: Recipe, arm: str, seed: int) -> dict[str, Any] | None:
    """The outcome of a run that is done, None before.

    Raises:
        ValueError: It was done with another recipe.
    """
    path = result_path(folder, arm, seed)
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found["recipe"] != recipe.digest:
        raise ValueError(
            f"{path}: was made with recipe {found['recipe']}, this is {recipe.digest}; name another --output, or take the "
            "former recipe"
        )
    return found


def run_into(recipe: Recipe, phase: str, arm: str, seed: int, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Runs and writes the outcome in one piece; a kill leaves no half of it."""
    result = {**run(recipe, phase, arm, seed, folder), **facts}
    path = result_path(folder, arm, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return result
