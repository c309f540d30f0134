"""At which times the flow is evaluated on its way from noise to action, and how the evaluations become steps.

The trained field bends near t = 1, where the chunk takes its final form, and is nearly straight at the noisy end. A grid
that is finer near t = 1 and a method of second order so need fewer evaluations for the same error
(`python -m benchmarks.flow_steps`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SOLVERS = ("euler", "ab2")


@dataclass(frozen=True)
class FlowSolver:
    """Integrates `dx/dt = v(x, t)` from t = 0 to t = 1, one evaluation of v per step.

    Attributes:
        num_steps: n, evaluations.
        method: "euler", or "ab2": Adams-Bashforth of second order, which also uses the evaluation before. Its first step is
            Euler's.
        grid_power: p of the grid `t_k = 1 - (1 - k / n)^p`: 1 is uniform, larger ones have shorter steps near t = 1.

    Raises:
        ValueError: If a value is impossible.
    """

    num_steps: int
    method: str = "euler"
    grid_power: float = 1.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps: expected at least 1 flow step, got {self.num_steps}")
        check_solver(self.method, self.grid_power)

    @classmethod
    def of(cls, config: Any, num_steps: int | None = None) -> FlowSolver:
        """A configuration's solver; `num_steps` in place of its `num_inference_steps`."""
        steps = config.num_inference_steps if num_steps is None else num_steps
        return cls(steps, config.flow_solver, config.flow_grid_power)

    @property
    def uniform_euler(self) -> bool:
        """Whether all steps are Euler's and equally long."""
        return self.method == "euler" and self.grid_power == 1

    @cached_property
    def times(self) -> tuple[float, ...]:
        """t of each evaluation, and 1 at the end: num_steps + 1 numbers."""
        return (*(1 - (1 - k / self.num_steps) ** self.grid_power for k in range(self.num_steps)), 1.0)

    def step_size(self, step: int) -> float:
        """Length of step number `step`, from 0."""
        if self.grid_power == 1:
            return 1 / self.num_steps
        return self.times[step + 1] - self.times[step]

    def advance(
        self, x: torch.Tensor, velocity: torch.Tensor, step: int, previous: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The point after step number `step`.

        Args:
            x: Point before the step, (B, T, D).
            velocity: v there.
            previous: v of the step before; None at the first one.
        """
        size = self.step_size(step)
        if self.method == "ab2" and previous is not None:
            # The line through both evaluations, integrated over this step; steps of unequal length change its weights.
            ahead = size / (2 * self.step_size(step - 1))
            velocity = (1 + ahead) * velocity - ahead * previous
        return x + size * velocity


def continued(
    velocity: torch.Tensor, x: torch.Tensor, time: float, continuation: tuple[torch.Tensor, torch.Tensor] | None
) -> torch.Tensor:
    """The velocity at (x, time) with a continuation (y, w): `(1 - w) v + w (y - x) / (1 - t)`. (B, T, D)

    It blends the flow's own velocity with the one that leads straight to y. Where w = 1 the flow ends at y, whatever the
    model says; where 0 < w < 1 every step pulls the predicted end point `x + (1 - t) v` towards y by the share w, and the
    rest of the chunk, which attends to these steps, follows. This is the guidance of real-time chunking (Black et al. 2025,
    arXiv 2506.07339) with the identity for the Jacobian of the predicted end point, so that it needs no gradient;
    `guided_flow` is the published one.
    """
    if continuation is None:
        return velocity
    target, weights = continuation
    return (1 - weights) * velocity + weights * (target - x) / (1 - time)


def check_solver(method: str, grid_power: float) -> None:
    """Raises ValueError for a solver that does not exist or a grid that does not end at t = 1 in growing steps."""
    if method not in SOLVERS:
        raise ValueError(f"flow_solver: expected one of {', '.join(SOLVERS)}, got {method!r}")
    if not 1 <= grid_power <= 10:
        raise ValueError(f"flow_grid_power: expected a number from 1 (uniform) to 10, got {grid_power!r}")


def require_uniform_euler(config: Any, what: str) -> None:
    """Raises ValueError where a stochastic step is to replace one of equally long Euler steps, and the flow has others."""
    if not FlowSolver.of(config).uniform_euler:
        raise ValueError(
            f"{what}: expected a checkpoint with flow_solver='euler' and flow_grid_power=1, whose steps it scores, got "
            f"{config.flow_solver!r} and {config.flow_grid_power}; change them with model_overrides, or score in another way"
        )
