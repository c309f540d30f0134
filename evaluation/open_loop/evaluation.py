"""Open-loop evaluation of a policy on held-out episodes: the report's numbers, and a short form for use while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .baselines import (
    BaselineChunks,
    hold_position,
    image_features,
    mean_action,
    nearest_neighbor,
    shared_dimensions,
    state_features,
    with_images,
)
from .errors import ChunkErrors, Comparison, Scale, by_episode, compare, spread_of_draws
from .moments import Dimensions, Moments
from .prediction import Predictions, predict
from .verdict import Verdict, judge


@dataclass(frozen=True)
class OpenLoopResult:
    """Everything that was compared.

    Attributes:
        moments: Where the policy was asked, and what was recorded.
        predictions: What it said.
        dimensions: Names and units of the action.
        scale: What scores are divided by.
        errors: Name to errors, "policy" first.
        comparisons: With every baseline.
        spread: float64 (T, D), standard deviation between draws; None for a single one.
        scores: float64 (F,), the policy's score of each moment.
        verdict: In words.
    """

    moments: Moments
    predictions: Predictions
    dimensions: Dimensions
    scale: Scale
    errors: Mapping[str, ChunkErrors]
    comparisons: Sequence[Comparison]
    spread: np.ndarray | None
    scores: np.ndarray
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """JSON form; arrays as lists, None where nothing was recorded or predicted."""
        every = np.ones(len(self.dimensions.names), dtype=bool)
        steps = {name: errors.scores(self.scale, every) for name, errors in self.errors.items() if _whole(errors)}
        return {
            "verdict": self.verdict.to_dict(),
            "comparisons": [one.to_dict() for one in self.comparisons],
            "dimensions": [
                {
                    "name": name,
                    "unit": unit,
                    "recorded_std": float(self.scale.spread[i]) if self.scale.moving[i] else 0.0,
                    "counts": bool(self.scale.moving[i]),
                    "mean_absolute_error": {key: _numbers(e.by_dimension()[i]) for key, e in self.errors.items()},
                    "spread_between_draws": None if self.spread is None else _numbers(_rms(self.spread[:, i])),
                }
                for i, (name, unit) in enumerate(zip(self.dimensions.names, self.dimensions.units, strict=True))
            ],
            "by_step": {
                "compared_chunks": self.moments.real.sum(0).tolist(),
                "score": {name: _numbers(_column_means(values)) for name, values in steps.items()},
                "mean_absolute_error": {name: _numbers(e.by_step()) for name, e in self.errors.items()},
                "spread_between_draws": None if self.spread is None else _numbers(self.spread),
            },
            "episodes": by_episode(self.moments, steps),
            "moments": [
                {
                    "episode": int(self.moments.episodes[row]),
                    "frame": int(self.moments.frames[row]),
                    "score": float(self.scores[row]),
                    **({"thought": self.predictions.thoughts[row]} if self.predictions.thoughts else {}),
                }
                for row in range(len(self.moments))
            ],
        }

    def worst(self, count: int, apart: int) -> list[int]:
        """Rows of the moments with the highest scores, those of an episode at least `apart` frames from each other."""
        chosen: list[int] = []
        for row in np.argsort(-self.scores, kind="stable").tolist():
            near = (
                self.moments.episodes[row] == self.moments.episodes[other]
                and abs(int(self.moments.frames[row] - self.moments.frames[other])) < apart
                for other in chosen
            )
            if not any(near):
                chosen.append(row)
            if len(chosen) == count:
                break
        return chosen


def evaluate_open_loop(
    policy: Any,
    dataset: Any,
    training: Any = None,
    *,
    stride: int = 1,
    steps: int | None = None,
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 16,
    most: int | None = None,
    neighbor_images: int = 2000,
    seen_in_training: Sequence[int] = (),
    progress: bool = True,
) -> OpenLoopResult:
    """Compares a policy's chunks with recorded ones.

    Args:
        policy: [`SyVLAPolicy`] whose `view_cameras` map each view to itself.
        dataset: `RobotDataset` of the held-out episodes.
        training: `RobotDataset` of the training episodes; None: no nearest neighbor, and mean and spread of the actions are
            those of the held-out episodes.
        stride, steps, most: See `Moments.of`.
        draws, seed, batch_size: See `predict`.
        neighbor_images: Training frames, spread evenly, to find the nearest one by images among; 0 leaves that out.
        seen_in_training: Episodes of `dataset` that the policy was trained on.
        progress: Whether to show progress bars.
    """
    moments = Moments.of(dataset, stride, steps, most)
    entry = policy.processor.embodiments[policy.embodiment]
    reference = dataset if training is None else training
    scale = Scale.of(reference.actions, entry.get("action_units"))
    predictions = predict(policy, dataset, moments, draws=draws, seed=seed, batch_size=batch_size, progress=progress)
    baselines: dict[str, BaselineChunks | None] = {
        "hold": hold_position(moments, shared_dimensions(entry, dataset.state_names, dataset.action_names)),
        "mean": mean_action(moments, reference.actions),
    }
    if training is not None:
        baselines |= _neighbors(moments, dataset, training, neighbor_images, progress)
    errors = {"policy": ChunkErrors.of(moments, predictions.actions)}
    comparisons = []
    for name, chunks in baselines.items():
        if chunks is None:
            continue
        errors[name] = ChunkErrors.of(moments, chunks.actions, chunks.dimensions)
        one = compare(name, moments, errors["policy"], errors[name], chunks.dimensions, scale)
        comparisons += [] if one is None else [one]
    every = np.ones(moments.actions.shape[-1], dtype=bool)
    return OpenLoopResult(
        moments,
        predictions,
        Dimensions.of(entry, dataset),
        scale,
        errors,
        comparisons,
        spread_of_draws(moments, predictions.actions),
        np.nanmean(errors["policy"].scores(scale, every), axis=1),
        judge(comparisons, seen_in_training),
    )


def measure_open_loop(
    model: Any, processor: Any, dataset: Any, *, moments: int = 64, draws: int = 2, seed: int = 0, batch_size: int = 16
) -> dict[str, float]:
    """A few numbers for a tracker while training goes on: `moments` moments spread evenly over the held-out episodes.

    Draws nothing from global random generators. The model is left in evaluation mode.

    Args:
        model: `SyVLAModel`.
        processor: Its processor.
        dataset: `RobotDataset` of held-out episodes.
        moments: Number of moments.
        draws, seed, batch_size: See `predict`.

    Returns:
        `error` (standard deviations of the held-out actions), the same of the baselines `hold` and `mean`, `ratio` to the
        better of them, `spread` between draws (standard deviations), and `mae/<dimension>` in physical units.
    """
    from syvla.serving.policies.in_process import SyVLAPolicy

    policy = SyVLAPolicy(model, processor, dataset.embodiment, {view: view for view in dataset.cameras})
    result = evaluate_open_loop(
        policy, dataset, draws=draws, seed=seed, batch_size=batch_size, most=moments, progress=False
    )
    best = min(result.comparisons, key=lambda one: one.baseline_score / max(one.policy_score, 1e-12))
    numbers = {
        "error": float(np.nanmean(result.scores)),
        **{one.baseline: one.baseline_score for one in result.comparisons},
        "ratio": best.policy_score / best.baseline_score if best.baseline_score else float("inf"),
    }
    moving = result.scale.moving
    if result.spread is not None:
        numbers["spread"] = float(_rms((result.spread / result.scale.spread)[:, moving]))
    for name, error in zip(result.dimensions.names, result.errors["policy"].by_dimension(), strict=True):
        numbers[f"mae/{name}"] = float(error)
    return numbers


def _neighbors(
    moments: Moments, dataset: Any, training: Any, frames: int, progress: bool
) -> dict[str, BaselineChunks | None]:
    tasks = dataset.task_indices[moments.indices]
    every = np.arange(len(training))
    queries = state_features(moments.states, training.states)
    found: dict[str, BaselineChunks | None] = {
        "nearest_state": nearest_neighbor(
            moments, queries, training, every, state_features(training.states, training.states), tasks
        )
    }
    if frames:
        some = np.unique(np.linspace(0, len(training) - 1, min(frames, len(training))).round().astype(np.int64))
        pictures, own = image_features(training, some, progress), image_features(dataset, moments.indices, progress)
        keys = with_images(state_features(training.states[some], training.states), pictures, pictures)
        found["nearest_images"] = nearest_neighbor(
            moments, with_images(queries, own, pictures), training, some, keys, tasks
        )
    return found


def _whole(errors: ChunkErrors) -> bool:
    return not np.isnan(errors.by_dimension()).any()


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean(np.square(values))))


def _column_means(values: np.ndarray) -> np.ndarray:
    """Mean of each column's values that are not NaN; NaN where none is."""
    known = ~np.isnan(values)
    return np.asarray(np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan))


def _numbers(values: Any) -> Any:
    """Floats or nested lists of them, None for NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim:
        return [_numbers(value) for value in array]
    return None if np.isnan(array) else float(array)
