"""Linear probes of `benchmarks.decoupling_study`: what can be read from query states, before and after masking.

Labels: "place" is where the thing lies, which the action needs; "name" what it is (digit, item or color) and "number" the
first number of a problem are reasoning, which the action does not need.

A probe is a ridge regression onto one-hot labels with closed form, one for each query state and one for all states
together. It is fitted on some expressions and tested on others (other problems, wishes and ways of naming), so that it cannot
know a text by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.decoupling_study_language import Request

RIDGE = 1e-2
TEST_SHARE = 3  # every third expression of a target is tested on


class Probe:
    """Ridge regression onto one-hot labels.

    Args:
        features: (M, D).
        labels: int (M,).
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        self.mean, self.scale = features.mean(0), np.maximum(features.std(0), 1e-6)
        self.classes = np.unique(labels)
        design = self._design(features)
        wanted = (labels[:, None] == self.classes).astype(float)
        penalty = RIDGE * len(design) * np.diag([*np.ones(design.shape[1] - 1), 0.0])
        self.weights = np.linalg.solve(design.T @ design + penalty, design.T @ wanted)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Labels (M,)."""
        found: np.ndarray = self.classes[(self._design(features) @ self.weights).argmax(1)]
        return found

    def _design(self, features: np.ndarray) -> np.ndarray:
        scaled = (features - self.mean) / self.scale
        return np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)


def split(asked: Sequence[Request]) -> np.ndarray:
    """Which requests a probe is tested on, bool: whole expressions, every third of each target."""
    by_target: dict[int, list[str]] = {}
    for request in asked:
        groups = by_target.setdefault(request.target, [])
        if request.group not in groups:
            groups.append(request.group)
    return np.array([by_target[r.target].index(r.group) % TEST_SHARE == TEST_SHARE - 1 for r in asked])


def accuracies(states: np.ndarray, kept: np.ndarray, labels: np.ndarray, tested: np.ndarray) -> dict[str, Any]:
    """Accuracy of a probe of each state, and of one of all states together, before and after masking.

    Args:
        states: (M, N, D).
        kept: Which states the mask keeps, bool (M, N).
        labels: int (M,), -1 where there is none.
        tested: bool (M,).

    Returns:
        `each`, `each_masked`: (N,) accuracy of each state's probe, fitted and tested on states as they are, and on states of
        which the masked ones are zero. `all`, `all_masked`: the same of all states together. `of_kept`, `of_masked`: how often
        the probes of `each` are right on those states that the mask keeps and on those that it takes; if masks took what
        carries this label, the latter would be higher. `chance`: of the most frequent label. None without labels.
    """
    known = labels >= 0
    train, test = known & ~tested, known & tested
    if not train.any() or not test.any():
        return {}
    wanted, own = labels[test], labels[train]
    zeroed = states * kept[..., None]
    right = np.stack([Probe(states[train, i], own)(states[test, i]) == wanted for i in range(states.shape[1])], axis=1)
    after = [float((Probe(zeroed[train, i], own)(zeroed[test, i]) == wanted).mean()) for i in range(states.shape[1])]
    together = [
        float((Probe(flat[train], own)(flat[test]) == wanted).mean())
        for flat in (states.reshape(len(states), -1), zeroed.reshape(len(states), -1))
    ]
    stay = kept[test]
    return {
        "each": [round(float(value), 4) for value in right.mean(0)],
        "each_masked": [round(value, 4) for value in after],
        "all": round(together[0], 4),
        "all_masked": round(together[1], 4),
        "of_kept": round(float(right[stay].mean()), 4) if stay.any() else None,
        "of_masked": round(float(right[~stay].mean()), 4) if not stay.all() else None,
        "chance": round(float((wanted == np.bincount(own).argmax()).mean()), 4),
    }


def probes(
    asked: Sequence[Request], things: Sequence[Sequence[int]], states: np.ndarray, kept: np.ndarray
) -> dict[str, Any]:
    """Accuracies for all labels.

    Args:
        asked: R requests.
        things: What lies on the table of each.
        states: Their query states after right thoughts, (R, N, D).
        kept: Masks of their frames, bool (draws, R, F, N); every draw and frame is a sample of its own.
    """
    draws, _, frames, _ = kept.shape
    rows = np.arange(len(asked)).repeat(draws * frames)
    masks = kept.transpose(1, 0, 2, 3).reshape(len(rows), -1)
    labels = {
        "place": [list(own).index(request.target) for request, own in zip(asked, things, strict=True)],
        "name": [request.target for request in asked],
        "number": [request.residue for request in asked],
    }
    tested = split(asked)
    return {name: accuracies(states[rows], masks, np.array(own)[rows], tested[rows]) for name, own in labels.items()}
