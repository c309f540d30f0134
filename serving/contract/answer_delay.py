"""How many control steps an answer takes, measured. No torch."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class MeasuredDelay:
    """Estimate the delay of answers from those that came, instead of a fixed `prefetch`.

    Attributes:
        most: Largest estimate, in control steps.
        quantile: Of the answers in the window; 1, the largest, as real-time chunking (arXiv 2506.07339, algorithm 1). A lower
            one forgives single slow answers, which are then entered late.
        window: Answers that count.
        initial: Estimate before the first answer.
    """

    most: int
    quantile: float = 1.0
    window: int = 10
    initial: int = 1

    def __post_init__(self) -> None:
        if self.most < 1 or not 0 <= self.initial <= self.most or self.window < 1:
            raise ValueError(f"prefetch: expected most >= 1, 0 <= initial <= most and window >= 1, got {self}")
        if not 0 < self.quantile <= 1:
            raise ValueError(f"prefetch: expected a quantile above 0, up to 1, got {self.quantile}")


class DelayEstimate:
    """The running estimate.

    Args:
        rule: How to estimate.

    Attributes:
        steps: Control steps that the next answer is expected to take.
    """

    def __init__(self, rule: MeasuredDelay) -> None:
        self.rule, self.steps = rule, rule.initial
        self._seen: deque[int] = deque(maxlen=rule.window)

    def add(self, steps: int) -> None:
        """Takes note of an answer that took so many control steps."""
        self._seen.append(steps)
        ordered = sorted(self._seen)
        rank = max(1, math.ceil(self.rule.quantile * len(ordered)))
        self.steps = min(self.rule.most, ordered[rank - 1])
