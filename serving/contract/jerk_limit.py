"""Commands within range, rate, acceleration and jerk, which never contradict each other. numpy only.

A command is only taken where the dimension can come to rest afterwards within all four limits; how, is kept as a plan. So at
every step at least the plan's next command holds all limits, whatever the policy asks for: braking begins early enough before
a bound, and the acceleration of a brake ends in time.

The plan of a state (change per step v, its change a) that comes to rest after n further steps: accelerations between the
lower envelope `max(a - k j, -A, -(n + 1 - k) j)` and the upper one, its mirror image, for k = 1 ... n. Both keep acceleration
A and jerk j, and lead to no acceleration after step n. The plan is the mixture of the two that sums to -v, for the least n
that has one. It follows from the mean of two motions within limits being within them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CANDIDATES = 33
_ROUNDS = 2  # of candidates, each within a sixteenth of the last
_SLACK = 1e-9  # of the exact state, relative
_ROUNDING = 2.4e-7  # of commands in float32, relative: two units in the last place


@dataclass
class Bounds:
    """Limits of the dimensions with a limited jerk, float64 (D,), as in `ActionLimits`; infinite where there is none."""

    low: np.ndarray
    high: np.ndarray
    step: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray


class JerkLimiter:
    """Keeps the exact state of dimensions with a limited jerk, and moves them.

    Args:
        bounds: What holds.

    Attributes:
        position, change, acceleration: The last command, its last change, and the change of that, float64 (D,). The command
            that is sent is the position in float32.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        count = len(bounds.jerk)
        self.position = self.change = self.acceleration = np.zeros(count)
        self._plan, self._planned = np.zeros((count, 0)), np.zeros(count, bool)
        self._wanted: np.ndarray | None = None
        self._on_target = np.ones(count, bool)  # whether the last command was what was wanted

    def begin_from(self, position: np.ndarray, change: np.ndarray, acceleration: np.ndarray) -> None:
        """Goes on from commands that ran."""
        self.position, self.change, self.acceleration = (
            np.asarray(x, np.float64) for x in (position, change, acceleration)
        )
        self._wanted, self._on_target = None, np.ones(len(self.position), bool)
        self._replan(self.bounds.step)

    def stopped(self, position: np.ndarray, moved: np.ndarray) -> None:
        """Something else chose the command, float32 (D,), in the dimensions `moved`; they begin to move afresh."""
        at_rest = np.where(moved, 0.0, 1.0)
        self.position = np.where(moved, np.asarray(position, np.float64), self.position)
        self.change, self.acceleration = self.change * at_rest, self.acceleration * at_rest
        self._on_target = self._on_target & ~moved
        self._replan(self.bounds.step)

    def move(self, wanted: np.ndarray, slow_step: np.ndarray, without: np.ndarray) -> np.ndarray:
        """The next command, float64 (D,).

        Args:
            wanted: (D,), within low and high.
            slow_step: Largest change of a slow start, (D,); it gives way where the motion so far could not keep it.
            without: The command that keeps the other limits, for dimensions that no plan brings to rest within all of them.
        """
        bounds, wanted = self.bounds, np.asarray(wanted, np.float64)
        peak = np.abs(self.change[:, None] + np.cumsum(self._plan, 1)).max(1, initial=0.0)
        step = np.minimum(bounds.step, np.maximum(slow_step, peak))
        # Where the target is going, as far as its last two values tell.
        held = self._wanted is None or wanted == self.position.astype(np.float32)
        drift = np.clip(wanted - (wanted if self._wanted is None else self._wanted), -bounds.step, bounds.step)
        drift = np.where(held, 0.0, drift)
        self._wanted = wanted
        direct = wanted - self.position - self.change
        low = np.maximum(np.maximum(self.acceleration - bounds.jerk, -bounds.acceleration), -step - self.change)
        high = np.minimum(np.minimum(self.acceleration + bounds.jerk, bounds.acceleration), step - self.change)
        rounding = _ROUNDING * np.maximum(1e-3, np.abs(wanted))
        passes = (direct >= low - rounding) & (direct <= high + rounding)
        near = np.where(passes, direct, self.acceleration)  # plans of what is far off are long
        passes &= self._viable(near, step)
        # A dimension that comes from elsewhere must not rush through its target.
        onward = self.change + near - drift
        passes &= self._on_target | (np.abs(_way_to_rest(onward, *stopping_plan(onward, near, bounds))) <= bounds.jerk)
        chosen, found = direct, passes
        if not passes.all():
            chosen, found = self._nearest(wanted, drift, np.minimum(low, high), high, step)
            chosen, found = np.where(passes, direct, chosen), found | passes
        new = np.where(passes, wanted, self.position + self.change + chosen)
        self._moved_to(np.where(found, new, np.asarray(without, np.float64)), step)
        self._on_target = self.position.astype(np.float32) == wanted
        return self.position

    def _nearest(
        self, wanted: np.ndarray, drift: np.ndarray, low: np.ndarray, high: np.ndarray, step: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The acceleration in [low, high] after which the dimension would come to rest nearest to the target that drifts.

        Returns:
            (accelerations (D,), whether there is one within all limits (D,)).
        """
        following = self._next_planned()
        best, found, reach = following, self._planned, high - low
        middle = (low + high) / 2
        for _ in range(_ROUNDS):
            grid = middle + np.linspace(-0.5, 0.5, _CANDIDATES)[:, None] * reach
            grid = np.clip(np.concatenate([grid, best[None]]), np.minimum(low, following), np.maximum(high, following))
            change = self.change + grid
            plan, length = stopping_plan(change, grid, self.bounds)
            allowed = self._keeps_limits(self.position + change, change, plan, step)
            if drift.any():
                plan, length = stopping_plan(change - drift, grid, self.bounds)
            stops = self.position + change - wanted + _way_to_rest(change - drift, plan, length)
            allowed[-1] |= found  # what was found before, or the plan's own
            errors = np.where(allowed, np.abs(stops), np.inf)
            row = errors.argmin(0)
            best = np.take_along_axis(grid, row[None], 0)[0]
            found = np.take_along_axis(allowed, row[None], 0)[0]
            best = np.where(found, best, following)
            middle, reach = best, reach / (_CANDIDATES - 1) * 2
        return best, found

    def _viable(self, acceleration: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Whether all limits can be kept after an acceleration, bool like `acceleration`, (..., D)."""
        change = self.change + acceleration
        plan, _ = stopping_plan(change, acceleration, self.bounds)
        return self._keeps_limits(self.position + change, change, plan, step)

    def _keeps_limits(self, position: np.ndarray, change: np.ndarray, plan: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Whether a state (..., D) and the plan from it on keep range and rate."""
        changes = change[..., None] + np.cumsum(plan, -1)
        positions = position[..., None] + np.cumsum(changes, -1)
        slack = _SLACK * (1 + np.abs(self.position))
        highest = np.maximum(position, positions.max(-1, initial=-np.inf))
        lowest = np.minimum(position, positions.min(-1, initial=np.inf))
        fastest = np.maximum(np.abs(change), np.abs(changes).max(-1, initial=0.0))
        fits: np.ndarray = (
            (highest <= self.bounds.high + slack) & (lowest >= self.bounds.low - slack) & (fastest <= step + slack)
        )
        return fits

    def _moved_to(self, position: np.ndarray, step: np.ndarray) -> None:
        """Takes note of the next command, and plans from there; keeps the old plan where only that one holds."""
        change = position - self.position
        acceleration = change - self.change
        followed = self._planned & (np.abs(acceleration - self._next_planned()) <= _SLACK)
        rest = self._plan[:, 1:]
        self.position, self.change, self.acceleration = position, change, acceleration
        self._replan(step)
        keeps = followed & ~self._planned
        if keeps.any():
            width = max(self._plan.shape[1], rest.shape[1])
            new, old = (np.pad(plan, ((0, 0), (0, width - plan.shape[1]))) for plan in (self._plan, rest))
            self._plan, self._planned = np.where(keeps[:, None], old, new), self._planned | keeps

    def _replan(self, step: np.ndarray) -> None:
        """Plans from the present state."""
        bounds, slack = self.bounds, _SLACK * (1 + np.abs(self.acceleration))
        self._plan, _ = stopping_plan(self.change, self.acceleration, bounds)
        self._planned = self._keeps_limits(self.position, self.change, self._plan, step)
        self._planned &= np.abs(self.acceleration) <= bounds.acceleration + slack

    def _next_planned(self) -> np.ndarray:
        return self._plan[:, 0] if self._plan.shape[1] else np.zeros(len(self.bounds.jerk))


def stopping_plan(change: np.ndarray, acceleration: np.ndarray, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """The shortest plan that brings dimensions to rest; see the module.

    Args:
        change: Change per step now, (..., D).
        acceleration: The change of that, (..., D).

    Returns:
        (accelerations (..., D, N), zero beyond each one's end; steps of each, int64 (..., D)).
    """
    most, jerk = bounds.acceleration, bounds.jerk
    length = _steps_to_rest(change, acceleration, bounds)
    k = np.arange(1, max(1, int(length.max(initial=0))) + 1)
    n, a = length[..., None], acceleration[..., None]
    up_to_end = np.minimum(most[..., None], (n + 1 - k) * jerk[..., None])
    lower = np.maximum(a - k * jerk[..., None], -up_to_end)
    upper = np.minimum(a + k * jerk[..., None], up_to_end)
    within = k <= n
    lower, upper = np.where(within, lower, 0.0), np.where(within, upper, 0.0)
    least, greatest = lower.sum(-1), upper.sum(-1)
    width = np.where(greatest > least, greatest - least, 1.0)
    share = np.clip((-change - least) / width, 0.0, 1.0)[..., None]
    plan: np.ndarray = (1 - share) * lower + share * upper
    return plan, length


def _way_to_rest(change: np.ndarray, plan: np.ndarray, length: np.ndarray) -> np.ndarray:
    """How far a plan still leads."""
    changes = change[..., None] + np.cumsum(plan, -1)
    way: np.ndarray = np.where(np.arange(plan.shape[-1]) < length[..., None], changes, 0.0).sum(-1)
    return way


def _steps_to_rest(change: np.ndarray, acceleration: np.ndarray, bounds: Bounds) -> np.ndarray:
    """The least n of the plan, int64 (..., D)."""
    jerk, most = bounds.jerk, bounds.acceleration
    a = np.abs(acceleration) / jerk
    v = (np.abs(change) + np.abs(acceleration)) / jerk + a * a / 2
    low = np.zeros(np.broadcast(change, acceleration).shape, np.int64)
    high: np.ndarray = np.ceil(a + 2 * np.sqrt(v) + v * jerk / most + 4).astype(np.int64)
    for _ in range(int(np.max(high, initial=1)).bit_length()):
        middle = (low + high) // 2
        reached = _reaches(middle, change, acceleration, bounds)
        low, high = np.where(reached, low, np.minimum(middle + 1, high)), np.where(reached, middle, high)
    return high


def _reaches(n: np.ndarray, change: np.ndarray, acceleration: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Whether some plan of n steps comes to rest."""
    slack = _SLACK * bounds.jerk
    ends = np.abs(acceleration) <= (n + 1) * bounds.jerk + slack
    least = _least_sum(n, acceleration, bounds)
    greatest = -_least_sum(n, -acceleration, bounds)
    reached: np.ndarray = ends & (-change >= least - slack) & (-change <= greatest + slack)
    return reached


def _least_sum(n: np.ndarray, acceleration: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Sum of the lower envelope: p terms that fall, q that rise at the end, and -A between them."""
    jerk = bounds.jerk
    a, most = acceleration / jerk, np.minimum(bounds.acceleration / jerk, 1e9)
    falling = np.clip(np.minimum(np.floor((a + n + 1) / 2), np.floor(a + most)), 0, n)
    rising = np.minimum(np.floor(most), n - falling)
    between = n - falling - rising
    total = a * falling - falling * (falling + 1) / 2 - most * between - rising * (rising + 1) / 2
    least: np.ndarray = total * jerk
    return least
