"""What an open-loop comparison says about a policy, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import LEAST_EPISODES, Comparison

NAMES = {
    "hold": "holding the position",
    "mean": "the mean action",
    "nearest_state": "the nearest training moment by state",
    "nearest_images": "the nearest training moment by state and images",
}


@dataclass(frozen=True)
class Verdict:
    """One of "learned", "partly", "not learned" and "unclear", and a sentence that says why."""

    outcome: str
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


def judge(comparisons: Sequence[Comparison], seen_in_training: Sequence[int] = ()) -> Verdict:
    """Whether the policy learned anything that needs no learning to predict as well.

    Args:
        comparisons: With every baseline.
        seen_in_training: Compared episodes that the policy was trained on.

    Raises:
        ValueError: Without any comparison.
    """
    if not comparisons:
        raise ValueError("comparisons: expected at least one baseline")
    best = min(comparisons, key=lambda one: one.baseline_score / max(one.policy_score, 1e-12))
    ratio = best.policy_score / best.baseline_score if best.baseline_score else float("inf")
    figures = (
        f"its error is {best.policy_score:.3g} standard deviations of the recorded actions, {ratio:.2f} of that of the best "
        f"baseline, {NAMES[best.baseline]} ({best.baseline_score:.3g})"
    )
    episodes = best.episodes
    beaten = [NAMES[one.baseline] for one in comparisons if one.outcome == "better"]
    others = [NAMES[one.baseline] for one in comparisons if one.outcome != "better"]
    constant = [one for one in comparisons if one.baseline in ("hold", "mean")]
    if episodes < LEAST_EPISODES:
        outcome = "unclear"
        text = f"Too few episodes to tell ({episodes}, at least {LEAST_EPISODES} are needed): {figures}."
    elif not others:
        outcome = "learned"
        text = (
            f"The policy learned: on {episodes} episodes {figures}; it is better in {best.better_episodes} of them, and "
            f"better than every baseline."
        )
    elif constant and all(one.outcome != "better" for one in constant):
        outcome = "not learned"
        text = f"The policy has not learned: it is no better than {_listed(others)}; {figures}."
    else:
        outcome = "partly"
        text = (
            f"The policy learned in part: it is better than {_listed(beaten)}, but no better than {_listed(others)}; "
            f"{figures}."
        )
    if seen_in_training:
        outcome = "unclear"
        text = (
            f"Episodes {_numbers(seen_in_training)} were trained on, so this says nothing about new ones. Apart from that: "
            + text
        )
    return Verdict(outcome, text)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _numbers(values: Sequence[int]) -> str:
    listed = ", ".join(map(str, values[:10]))
    return listed + (f" and {len(values) - 10} more" if len(values) > 10 else "")
