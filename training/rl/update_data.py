"""What an update works on: advantages and old scores of its samples, and which of them make up each pass.

All of it is decided before the first step and saved with a checkpoint, so that an update which is broken off goes on with
the same numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

DATA_FILE = "rl_update.safetensors"


@dataclass
class UpdateData:
    """One update. D decisions, E distinct expert samples, P passes per process, W processes.

    Attributes:
        number: Number of the update, from 0.
        episode_ids: Its rollouts.
        advantages, returns, old_values: float32 (D,); advantages are clipped.
        seeds: int64 (D,), of the points at which each chunk is scored.
        old_scores: float32 (D, S).
        expert_rows, expert_seeds: int64 (E,).
        expert_advantages: float32 (E,).
        expert_scores: float32 (E, S).
        rollout_plan: int64 (P, W, samples), numbers of decisions.
        expert_plan: int64 (P, W, samples), numbers of expert samples.
        metrics: What is logged of it once.
        step: Steps that are done.
        ended: Whether it was ended early.
        no_information: Why its advantages say nothing, so that no policy comes of it; empty if they do.
        corrected_ids: Rollouts whose corrections are among the expert samples, in the order of their rows.
        replayed_ids: Earlier rollouts whose decisions come after those of `episode_ids`.
        old_velocities, expert_velocities: float32 (D, S, T, D_action) and (E, ...), what the policy answered before the
            update (`objective="nft"`).
        positive: bool (D,), whether an advantage is positive (`objective="recap"`).
        dropped_rollouts, dropped_experts: bool, of the shapes of the plans: where the prompt says nothing of it.
    """

    number: int
    episode_ids: list[str]
    advantages: np.ndarray
    returns: np.ndarray
    old_values: np.ndarray
    seeds: np.ndarray
    old_scores: np.ndarray
    expert_rows: np.ndarray
    expert_seeds: np.ndarray
    expert_advantages: np.ndarray
    expert_scores: np.ndarray
    rollout_plan: np.ndarray
    expert_plan: np.ndarray
    metrics: dict[str, float]
    step: int = 0
    ended: bool = False
    no_information: str = ""
    corrected_ids: list[str] = field(default_factory=list)
    replayed_ids: list[str] = field(default_factory=list)
    old_velocities: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    expert_velocities: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    positive: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    dropped_rollouts: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    dropped_experts: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def save(self, folder: str | Path) -> None:
        """Write `rl_update.safetensors`."""
        arrays, facts = {}, {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                arrays[item.name] = np.ascontiguousarray(value)
            else:
                facts[item.name] = value
        save_file(arrays, Path(folder) / DATA_FILE, metadata={"facts": json.dumps(facts)})

    @classmethod
    def load(cls, folder: str | Path) -> UpdateData:
        """Read what `save` wrote."""
        from safetensors import safe_open

        path = Path(folder) / DATA_FILE
        with safe_open(path, "numpy") as file:
            facts = json.loads(file.metadata()["facts"])
        values: dict[str, Any] = {**load_file(path), **facts}
        return cls(**values)


def sample_seeds(run_seed: int, update: int, kind: int, numbers: np.ndarray) -> np.ndarray:
    """A seed for each sample of an update, int64; `kind` tells rollouts (0) from experts (1)."""
    states = [
        np.random.SeedSequence([run_seed, update, kind, int(number)]).generate_state(1, np.uint64) for number in numbers
    ]
    return (np.array(states, np.uint64).reshape(-1) >> np.uint64(1)).astype(np.int64)


def plan_rollouts(decisions: int, samples: int, passes: int, world: int, generator: np.random.Generator) -> np.ndarray:
    """Numbers of decisions for every pass and process, (passes, world, samples): one permutation after another."""
    wanted = passes * world * samples
    rounds = -(-wanted // decisions)
    order = np.concatenate([generator.permutation(decisions) for _ in range(rounds)])[:wanted]
    return order.reshape(passes, world, samples)


def plan_experts(
    rollout_plan: np.ndarray, neighbors: np.ndarray, samples: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Expert samples that join each pass, each a neighbor of one of its rollout samples, which take turns.

    Args:
        rollout_plan: From `plan_rollouts`.
        neighbors: Rows of each decision's candidates, (D, k); -1 is no candidate.
        samples: Expert samples per pass and process.
        generator: Chooses among the candidates.

    Returns:
        (distinct rows (E,), plan (passes, world, samples) of numbers into them).
    """
    passes, world, size = rollout_plan.shape
    turns = rollout_plan[:, :, np.arange(samples) % size]  # whose neighbor
    counts = (neighbors >= 0).sum(axis=1)
    choice = (generator.random(turns.shape) * counts[turns]).astype(np.int64)
    rows, numbers = np.unique(neighbors[turns, choice], return_inverse=True)
    return rows, numbers.reshape(passes, world, samples)


def join_corrections(
    rows: np.ndarray, plan: np.ndarray, corrections: np.ndarray, share: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Puts a person's corrections in the place of a share of the planned expert samples.

    Args:
        rows, plan: From `plan_experts`.
        corrections: Rows of all corrections, (C,); each is as likely as any other.
        share: Of the expert samples, in [0, 1].
        generator: Chooses places and corrections.

    Returns:
        As `plan_experts`; the same where there are no corrections.
    """
    if not len(corrections) or not plan.size or not share:
        return rows, plan
    planned = rows[plan]
    chosen = generator.random(plan.shape) < share
    planned[chosen] = generator.choice(corrections, int(chosen.sum()))
    distinct, numbers = np.unique(planned, return_inverse=True)
    return distinct, numbers.reshape(plan.shape)
