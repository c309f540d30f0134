"""What an outcome is credited to in a rollout in which a person took over (HG-DAgger; Kelly et al., 2019).

A person takes over because the policy was about to fail, and what the person brings about is not the policy's doing. So the
last decisions before a takeover count as failed. What lies before them is credited up to that point: nobody knows how it would
have ended, and the value model's estimate of the observation that it led to stands for it. The outcome that a person labels
belongs to what the policy decided after the last takeover, if it decided anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from syvla.serving.recording.decision import Decision, Rollout
from syvla.training.retrieval.demonstrations import SUCCESS

FAILED_DECISIONS = 2
"""Decisions before a takeover that count as failed. Ours: a person needs a second or two to see that it goes wrong, and at
the paper's 50 steps per chunk and 25 Hz a decision lasts two seconds."""


@dataclass(frozen=True)
class CreditedPart:
    """Successive decisions of a rollout that one ending is credited to.

    Attributes:
        first, last: Numbers of the decisions, `last` excluded. Of the last one something ran, unless it goes on.
        outcome: Reward that the last control step brings; None: it goes on, and `following` is valued.
        following: Number of the observation that follows among the decisions and, after them, `Rollout.final`.
        labeled: Its outcome for metrics: from 0 failure to 1 success, NaN neither.
    """

    first: int
    last: int
    outcome: float | None
    following: int | None
    labeled: float


def credited_parts(
    rollout: Rollout, *, failed_decisions: int = FAILED_DECISIONS, bootstrap_timeouts: bool
) -> list[CreditedPart]:
    """The parts of a labeled rollout, in order. Together they hold every decision of which something ran.

    Args:
        rollout: Labeled.
        failed_decisions: How many decisions before a takeover count as failed, at least 1.
        bootstrap_timeouts: Whether a rollout that a time limit cut off, labeled 0, goes on at its last observation.
    """
    parts: list[CreditedPart] = []
    ran = np.array([decision.valid.any() for decision in rollout.decisions])
    first = 0
    for number, decision in enumerate(rollout.decisions):
        if not decision.taken_over:
            continue
        counted = first + np.flatnonzero(ran[first : number + 1])
        if len(counted):
            failed = int(counted[-failed_decisions:][0])
            if failed > first:
                parts.append(CreditedPart(first, failed, None, failed, float("nan")))
            parts.append(CreditedPart(failed, int(counted[-1]) + 1, 0.0, None, 0.0))
        first = number + 1
    counted = first + np.flatnonzero(ran[first:])
    if len(counted):
        outcome = rollout.facts.outcome
        assert outcome is not None  # the store lists labeled rollouts only
        goes_on = bootstrap_timeouts and rollout.facts.timed_out and outcome == 0
        reward, following = (None, len(rollout.decisions)) if goes_on else (float(outcome), None)
        parts.append(CreditedPart(first, int(counted[-1]) + 1, reward, following, float(outcome)))
    return parts


def credited_outcomes(rollout: Rollout, parts: Sequence[CreditedPart]) -> list[float]:
    """`CreditedPart.labeled` of every decision of which something ran, in order."""
    ran = [decision.valid.any() for decision in rollout.decisions]
    return [part.labeled for part in parts for number in range(part.first, part.last) if ran[number]]


def counted_decisions(rollout: Rollout) -> list[Decision]:
    """Decisions of which something ran."""
    return [decision for decision in rollout.decisions if decision.valid.any()]


def own_reward(rollout: Rollout) -> float:
    """The outcome as the policy's own: 0 where a person had to act."""
    return 0.0 if rollout.corrections or rollout.facts.outcome is None else float(rollout.facts.outcome)


def outcome_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Success rate and rewards of the policies of labeled rollouts, under TRL's names; NaN where none is labeled."""
    rewards = np.array([own_reward(rollout) for rollout in rollouts if rollout.facts.outcome is not None])
    success, score = (
        (float((rewards >= SUCCESS).mean()), float(rewards.mean())) if len(rewards) else (math.nan, math.nan)
    )
    return {
        "objective/success_rate": success,
        "objective/scores": score,
        "objective/non_score_reward": 0.0,
        "objective/rlhf_reward": score,
    }
