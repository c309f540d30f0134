"""Success rates with Wilson score intervals.

An interval belongs with every success rate: 28 of 40 episodes is 70%, and anything from 55% to 82% is compatible with
it. Wilson's interval (Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22)
keeps its coverage for few episodes and for rates near 0 and 1, where the usual p +- 1.96 sqrt(p(1-p)/n) collapses to a
point.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Wilson score interval of a binomial proportion.

    Args:
        successes: Number of successful episodes.
        episodes: Number of episodes; 0 gives the uninformative interval (0, 1).
        confidence: Coverage, in (0, 1).

    Returns:
        (low, high), both in [0, 1].

    Raises:
        ValueError: If the counts or the confidence are out of range.
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"successes: expected 0 <= successes <= episodes ({episodes}), got {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    if episodes == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(successes, episodes).proportion_ci(confidence, method="wilson")
    # At 0 and at `episodes` the bound is exactly 0 or 1; rounding must not say otherwise.
    low = 0.0 if successes == 0 else float(interval.low)
    high = 1.0 if successes == episodes else float(interval.high)
    return low, high


@dataclass(frozen=True)
class SuccessRate:
    """Successes out of episodes; prints as ``28/40 = 70.0% [54.6, 81.9]``."""

    successes: int
    episodes: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> "SuccessRate":
        """Counts the outcomes of episodes."""
        results = [bool(outcome) for outcome in outcomes]
        return cls(sum(results), len(results))

    @property
    def rate(self) -> float:
        """Share of successful episodes; NaN without episodes."""
        return self.successes / self.episodes if self.episodes else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval."""
        return wilson_interval(self.successes, self.episodes)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: successes, episodes, success_rate (None without episodes), interval [low, high]."""
        return {
            "successes": self.successes,
            "episodes": self.episodes,
            "success_rate": self.rate if self.episodes else None,
            "interval": list(self.interval),
        }

    def __str__(self) -> str:
        if not self.episodes:
            return "0/0"
        low, high = (100 * bound for bound in self.interval)
        return f"{self.successes}/{self.episodes} = {100 * self.rate:.1f}% [{low:.1f}, {high:.1f}]"
