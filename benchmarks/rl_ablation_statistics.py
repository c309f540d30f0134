"""Tests of `benchmarks.rl_ablation`: arms against each other over training seeds, which share evaluation starts.

A seed's difference of two success rates is one observation. The paired t test assumes that these are normal; the permutation
test flips the signs of whole seeds and assumes nothing of the kind. The two primary contrasts are corrected by Holm's method,
for both tests; all others are exploratory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.decoupling_study_statistics import flip_test, holm, power, t_interval

PRIMARY = (("similar", "random"), ("similar", "imitation"))

SECONDARY = (
    *(("similar", "il"), ("imitation", "continued"), ("near_zero", "similar"), ("none", "similar"), ("gae", "similar")),
    *(("dagger", "imitation"), ("both", "dagger"), ("both", "similar"), ("recap", "imitation"), ("nft", "similar")),
    *(("pi_rl", "similar"), ("simplevla_rl", "similar"), ("pi_rl", "none")),
)

DETECTED = 0.07
"""Difference of which the design's power is stated: the one that the pilot suggested."""

Rates = Mapping[str, Mapping[int, float]]
"""Success rate by arm and seed."""


def contrasts(rates: Rates) -> dict[str, dict[str, Any]]:
    """`primary` and `secondary` contrasts of the arms that are there, by name such as "similar - random"."""
    found: dict[str, dict[str, Any]] = {}
    for family, pairs in (("primary", PRIMARY), ("secondary", SECONDARY)):
        own = {f"{a} - {b}": difference(rates[a], rates[b]) for a, b in pairs if a in rates and b in rates}
        found[family] = {name: facts for name, facts in own.items() if facts is not None}
    for test in ("p_permutation", "p_t"):
        known = {name: facts[test] for name, facts in found["primary"].items() if facts[test] is not None}
        for name, adjusted in holm(known).items():
            found["primary"][name][f"{test}_holm"] = adjusted
    return found


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> dict[str, Any] | None:
    """Mean difference over the seeds that both arms have, with interval and tests; None without such a seed."""
    from scipy.stats import ttest_1samp

    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    pairs = np.array([first[seed] - second[seed] for seed in seeds])
    spread = float(pairs.std(ddof=1)) if len(pairs) > 1 else 0.0
    facts: dict[str, Any] = {"seeds": len(seeds), "mean": float(pairs.mean()), "by_seed": pairs.round(4).tolist()}
    facts |= {"ci95": None, "p_t": None, "p_permutation": flip_test(pairs), "power": None}
    if spread > 0:
        facts |= {
            "ci95": list(t_interval(pairs)),
            "p_t": float(ttest_1samp(pairs, 0.0).pvalue),
            "power": {
                "of_a_difference_of": DETECTED,
                "level": 0.05 / len(PRIMARY),
                "power": power(spread, len(pairs), difference=DETECTED, level=0.05 / len(PRIMARY)),
            },
        }
    return facts
