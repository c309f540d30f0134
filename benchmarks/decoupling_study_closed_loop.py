"""Closed loop of `benchmarks.decoupling_study`: all starts of a split at once, the expert in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.decoupling_study_language import PLACES, TASKS, words
from benchmarks.decoupling_study_plan import Phase, Recipe
from benchmarks.decoupling_study_policy import observation_of, thoughtful_states
from benchmarks.decoupling_study_scenes import DIM, Scene, make_world
from syvla.evaluation.environments.tabletop.choice_tasks import ASPECTS_OF
from syvla.modeling_syvla import SyVLAModel

SPLITS = ("in_domain", "ood")
SUCCESS, WRONG, LATE = "swt"
"""Outcome of an episode: success, a wrong choice carried out, time limit."""


@dataclass(frozen=True)
class Start:
    """One episode's start; `unseen` is empty in domain, else the one aspect that demonstrations do not show."""

    task: str
    unseen: str
    seed: int


def starts(recipe: Recipe, phase: Phase, split: str) -> list[Start]:
    """The starts that all runs of a phase share: tasks in turn, and out of distribution each task's aspects in turn."""
    found = []
    for number in range(recipe.starts):
        task, turn = TASKS[number % len(TASKS)], number // len(TASKS)
        aspects = ASPECTS_OF[task]
        unseen = aspects[turn % len(aspects)] if split == "ood" else ""
        found.append(Start(task, unseen, phase.evaluation + 10_000 * SPLITS.index(split) + number))
    return found


@torch.no_grad()
def closed_loop(model: SyVLAModel, recipe: Recipe, episodes: Sequence[Start], thoughts: bool) -> dict[str, Any]:
    """Outcomes, one character for each start; numbers of control steps; whether thoughts were right ("1", "0").

    The policy reads the instruction and thinks once, then makes a chunk every `replan_steps`. The noise of a chunk depends on
    the start and on how many came before it.
    """
    worlds = [
        make_world(start.task, max_steps=recipe.max_steps, ood=(start.unseen,) if start.unseen else ())
        for start in episodes
    ]
    for world, start in zip(worlds, episodes, strict=True):
        world.reset(seed=start.seed)
    scenes = [Scene(world) for world in worlds]
    layouts = [scene.env.layout for scene in scenes]
    states, said = thoughtful_states(
        model, [layout.instruction for layout in layouts], [scene.targets for scene in scenes], thoughts
    )
    outcome, steps = [""] * len(scenes), [0] * len(scenes)
    call = 0
    while active := [i for i, found in enumerate(outcome) if not found]:
        actions = _chunks(model, recipe, scenes, episodes, states, active, call)
        for row, i in enumerate(active):
            for action in actions[row, : recipe.replan_steps]:
                _, _, terminated, truncated, info = worlds[i].step(scenes[i].joint_targets(action))
                steps[i] += 1
                if terminated or truncated:
                    outcome[i] = SUCCESS if info["success"] else WRONG if info["failure_reason"] else LATE
                    worlds[i].close()
                    break
        call += 1
    # The place tells what the thought has found, however it got there.
    places = [PLACES[scene.names.index("object")] for scene in scenes]
    right = [words(own)[-1:] == [place] for own, place in zip(said, places, strict=True)] if thoughts else []
    return {"outcomes": "".join(outcome), "steps": steps, "thoughts_right": "".join("01"[int(own)] for own in right)}


def _chunks(
    model: SyVLAModel,
    recipe: Recipe,
    scenes: Sequence[Scene],
    episodes: Sequence[Start],
    states: torch.Tensor,
    active: Sequence[int],
    call: int,
) -> np.ndarray:
    seen = [scenes[i].views() for i in active]
    views, present = (np.stack([pair[k] for pair in seen]) for k in (0, 1))
    observation = observation_of(views, present, np.stack([scenes[i].state() for i in active]))
    shape = (recipe.chunk_size, DIM)
    noise = np.stack([np.random.default_rng([episodes[i].seed, call]).standard_normal(shape) for i in active])
    chunk = model.sample_actions(states[list(active)], observation, noise=torch.tensor(noise, dtype=torch.float32))
    found: np.ndarray = chunk.numpy()
    return found
