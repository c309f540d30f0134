"""Statistics of `benchmarks.decoupling_study`: paired contrasts over seeds and starts, tests, intervals and power.

The primary outcome is success over all starts, in domain and out of distribution alike. Runs of one seed share initial
weights, samples, noise and starts, so arms are compared seed by seed. The test flips the signs of whole seeds: under the null
hypothesis either arm might have had either outcome. Nothing is assumed about the distribution. The three primary contrasts
are corrected by Holm's method; all else is exploratory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from benchmarks.decoupling_study_closed_loop import SPLITS, SUCCESS

PRIMARY: dict[str, dict[str, int]] = {
    "decoupling on - off, with thoughts": {"weakest": 1, "off": -1},
    "weakest - random masked": {"weakest": 1, "random": -1},
    "interaction with thoughts": {"weakest": 1, "off": -1, "silent_weakest": -1, "silent_off": 1},
}
"""Weights of the arms in each contrast."""

SECONDARY: dict[str, dict[str, int]] = {
    "decoupling on - off, without thoughts": {"silent_weakest": 1, "silent_off": -1},
    "thoughts on - off, without decoupling": {"off": 1, "silent_off": -1},
    "weakest - strongest masked": {"weakest": 1, "strongest": -1},
    "weakest, quantile 0.05 - 0.2": {"weakest": 1, "quantile_20": -1},
    "weakest - noise": {"weakest": 1, "noise": -1},
    "random - off": {"random": 1, "off": -1},
    "10 - 5 query tokens": {"weakest": 1, "queries_5": -1},
    "10 - 20 query tokens": {"weakest": 1, "queries_20": -1},
}
DIFFERENCE = 0.10
"""Of which the design's power is stated."""

_EXACT = 14  # seeds up to which all flips are counted
_FLIPS = 20_000


def success_matrix(
    runs: Sequence[Mapping[str, Any]], arm: str, splits: Sequence[str] = SPLITS
) -> dict[int, np.ndarray]:
    """Seed to successes of all starts of the splits, float (starts,)."""
    return {
        run["seed"]: np.concatenate([[float(c == SUCCESS) for c in run[split]["outcomes"]] for split in splits])
        for run in runs
        if run["arm"] == arm
    }


def contrast(
    runs: Sequence[Mapping[str, Any]], weights: Mapping[str, int], splits: Sequence[str] = SPLITS
) -> np.ndarray:
    """Weighted sum of the arms' successes, seed by seed and start by start, (seeds, starts); seeds that all arms have."""
    arms = {arm: success_matrix(runs, arm, splits) for arm in weights}
    seeds = sorted(set.intersection(*(set(found) for found in arms.values())))
    return np.array([sum(weight * arms[arm][seed] for arm, weight in weights.items()) for seed in seeds])


def flip_test(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p value of the mean's being 0: share of sign flips whose mean is at least as far away.

    Args:
        differences: One for each training seed, (S,).
    """
    if len(differences) <= _EXACT:
        signs = np.array(list(product((1, -1), repeat=len(differences))))
        extra = 0
    else:
        signs = np.random.default_rng(seed).choice((1, -1), (_FLIPS, len(differences)))
        extra = 1  # what was observed is one of the flips
    means = np.abs(signs @ differences) / len(differences)
    hits = (means >= abs(differences.mean()) - 1e-12).sum()
    return float((hits + extra) / (len(signs) + extra))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values."""
    order = sorted(p_values, key=lambda name: p_values[name])
    adjusted, worst = {}, 0.0
    for place, name in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - place) * p_values[name]))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p_values}


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Of the mean over seeds; other starts are not thought of. NaN with one seed."""
    from scipy.stats import t

    if len(values) < 2:
        return float("nan"), float("nan")
    half = float(t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return float(values.mean() - half), float(values.mean() + half)


def bootstrap_interval(differences: np.ndarray, level: float = 0.95, draws: int = 4000) -> tuple[float, float]:
    """Percentile interval of the mean when seeds and starts are both drawn anew; differences: (seeds, starts).

    It errs on the side of width: noise that belongs to neither counts up to three times in the variance (Owen, 2007).
    """
    rng = np.random.default_rng(0)
    seeds, starts = differences.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws)  # how often each is drawn, (draws, seeds)
    columns = rng.multinomial(starts, np.full(starts, 1 / starts), draws)
    means = ((rows @ differences) * columns).sum(1) / (seeds * starts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def power(
    spread: float, seeds: int, *, difference: float = DIFFERENCE, level: float = 0.05, draws: int = 2000
) -> float:
    """How often `flip_test` would find a difference, if seeds' differences are normal with this standard deviation."""
    rng = np.random.default_rng(0)
    drawn = difference + spread * rng.standard_normal((draws, seeds))
    if seeds > _EXACT:
        return float(np.mean([flip_test(own) <= level for own in drawn[:200]]))
    signs = np.array(list(product((1, -1), repeat=seeds)))
    means = np.abs(drawn @ signs.T)  # (draws, 2 ** seeds)
    p_values = (means >= np.abs(drawn.sum(1, keepdims=True)) - 1e-12).mean(1)
    return float((p_values <= level).mean())


def describe(differences: np.ndarray, corrected_by: int) -> dict[str, Any]:
    """Mean, intervals, test and power of one contrast.

    Args:
        differences: From `contrast`.
        corrected_by: Number of contrasts in the family, for the power at the strictest level of Holm's method.
    """
    by_seed = differences.mean(1)
    spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan")
    known = len(by_seed) > 1
    return {
        "seeds": len(by_seed),
        "mean": float(by_seed.mean()),
        "by_seed": [round(float(value), 4) for value in by_seed],
        "t_interval": list(t_interval(by_seed)) if known else None,
        "bootstrap_interval": list(bootstrap_interval(differences)) if known else None,
        "p": flip_test(by_seed),
        "power": power(spread, len(by_seed), level=0.05 / corrected_by) if known else None,
    }


def analyze(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Success by arm, and all contrasts whose arms are there."""
    there = {run["arm"] for run in runs}
    found: dict[str, Any] = {"arms": {}, "primary": {}, "secondary": {}, "by_split": {}}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        found["arms"][arm] = {
            split: _rate(np.array(list(success_matrix(runs, arm, [split]).values()))) for split in SPLITS
        }
    for family, contrasts in (("primary", PRIMARY), ("secondary", SECONDARY)):
        for name, weights in contrasts.items():
            if not set(weights) <= there or not len(contrast(runs, weights)):
                continue
            size = len(PRIMARY) if family == "primary" else 1
            found[family][name] = describe(contrast(runs, weights), size)
            if family == "primary":
                found["by_split"][name] = {split: describe(contrast(runs, weights, [split]), 1) for split in SPLITS}
    adjusted = holm({name: own["p"] for name, own in found["primary"].items()})
    for name, value in adjusted.items():
        found["primary"][name]["p_holm"] = value
    return found


def _rate(successes: np.ndarray) -> dict[str, Any]:
    """successes: (seeds, starts)."""
    by_seed = successes.mean(1)
    interval = list(t_interval(by_seed)) if len(by_seed) > 1 else None
    return {"seeds": len(by_seed), "mean": float(by_seed.mean()), "t_interval": interval}
