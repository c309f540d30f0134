"""The flow steps of one observation: in plain PyTorch, and compiled for fixed shapes.

A step runs the suffix tokens alone. What does not change over the steps is made before the first one: all timestep tokens
in one batch, the mask, which robot's MLPs to take, and per layer one buffer with the prefix's keys and values, into whose
end each step writes those of the suffix.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F

from .action_expert import ActionExpert, ExpertContext
from .flow_solver import FlowSolver, continued

logger = logging.getLogger(__name__)

Continuation = tuple[torch.Tensor, torch.Tensor]
"""Actions to continue (B, T, D) and weights (B, T, 1); see `flow_solver.continued`."""


def velocity_of(expert: ActionExpert, x: torch.Tensor, time: torch.Tensor, context: ExpertContext) -> torch.Tensor:
    """One flow step's velocity; what is compiled where the loop is not."""
    return expert.velocity_at(x, time, context)


def denoise(
    expert: ActionExpert,
    noise: torch.Tensor,
    times: torch.Tensor,
    context: ExpertContext,
    solver: FlowSolver,
    continuation: Continuation | None = None,
    velocity_fn: Callable[..., torch.Tensor] = velocity_of,
) -> torch.Tensor:
    """From noise to actions, (B, T, D).

    Args:
        noise: float32 (B, T, D).
        times: Timestep tokens, one per step, (steps, D); see `step_times`.
        context: From `fixed_context`.
        solver: As for `times`.
        velocity_fn: `velocity_of`, or it compiled.
    """
    context = context.with_buffers(1 + noise.shape[1])
    x, previous = noise, None
    for step in range(solver.num_steps):
        velocity = velocity_fn(expert, x, times[step : step + 1], context).to(x.dtype)
        velocity = continued(velocity, x, solver.times[step], continuation)
        x, previous = solver.advance(x, velocity, step, previous), velocity
    return x


def step_times(expert: ActionExpert, solver: FlowSolver, device: torch.device) -> torch.Tensor:
    """Timestep tokens of all steps, (num_steps, D)."""
    return expert.encode_times(torch.tensor(solver.times[:-1], device=device, dtype=torch.float32))


def fixed_context(
    expert: ActionExpert, context: ExpertContext, steps: int, *, keep_mask: bool = False
) -> ExpertContext:
    """`context` with what can be decided once for all flow steps over `steps` actions; waits for the device.

    Args:
        keep_mask: Keep the mask even where all tokens are real, so that a missing view changes no shape.
    """
    mask = None
    if keep_mask or not context.prefix_mask.all():
        mask = F.pad(context.prefix_mask, (0, steps + 1), value=True)[:, None, None, :]
    return replace(context, mask=mask, route=expert.route(context.embodiment_ids))


class CompiledDenoising:
    """Flow steps through `torch.compile`, for shapes that do not change.

    The first shapes that come are compiled, at their first call; a robot in motion must not wait for a compiler later on,
    so further ones run as they are, with one warning. Further robots of the same shapes are compiled as they come.

    Args:
        max_shapes: How many different shapes are compiled.
        strict: Raise where it would fall back.
        whole_loop: Compile all steps into one graph, which on a GPU becomes one CUDA graph, but takes longer to compile;
            otherwise one step, called as often as there are steps. None: on a GPU only.
    """

    def __init__(self, max_shapes: int = 1, strict: bool = False, whole_loop: bool | None = None) -> None:
        if max_shapes < 1:
            raise ValueError(f"max_shapes: expected at least 1, got {max_shapes}")
        self.max_shapes, self.strict, self.whole_loop = max_shapes, strict, whole_loop
        self._shapes: list[dict[str, int]] = []
        self._compiled: dict[tuple[Any, ...], Callable[..., torch.Tensor]] = {}
        self._failure: str | None = None
        self._warned = False

    def __reduce__(self) -> Any:  # a copy compiles for itself
        return CompiledDenoising, (self.max_shapes, self.strict, self.whole_loop)

    def __call__(
        self,
        expert: ActionExpert,
        noise: torch.Tensor,
        times: torch.Tensor,
        context: ExpertContext,
        solver: FlowSolver,
        continuation: Continuation | None = None,
    ) -> torch.Tensor:
        """As `denoise`, but `context` as the expert made it.

        Raises:
            RuntimeError: What cannot be compiled, if strict.
        """
        whole = noise.device.type == "cuda" if self.whole_loop is None else self.whole_loop
        fixed = fixed_context(expert, context, noise.shape[1], keep_mask=True)
        drop_stale_fusions(expert)
        if whole and continuation is None:  # the same graph, with or without
            continuation = (torch.zeros_like(noise), torch.zeros_like(noise[..., :1]))
        work = (expert, noise, times, fixed, solver, continuation)
        shape = _shape(noise, times, fixed, whole)
        robot = fixed.route[0][0] if fixed.route else None
        constants = solver if whole else None  # the steps' lengths, in a graph of all steps
        key = (*shape.values(), noise.device, robot, fixed.condition_mask is None, constants)
        if key in self._compiled:
            return _run(self._compiled[key], whole, work)
        reason = self._refusal(shape, fixed)
        if reason is None:
            # A code object of its own: torch keeps what it compiled, and counts it, per code object.
            original = denoise if whole else velocity_of
            function = FunctionType(original.__code__.replace(), original.__globals__, closure=original.__closure__)
            function.__kwdefaults__, function.__defaults__ = original.__kwdefaults__, original.__defaults__
            mode = "reduce-overhead" if noise.device.type == "cuda" else None
            compiled = torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
            try:
                actions = _run(compiled, whole, work)
            except Exception as error:
                first_line = str(error).strip().partition("\n")[0]
                reason = self._failure = f"torch.compile failed: {type(error).__name__}: {first_line}"
            else:
                self._compiled[key] = compiled
                if shape not in self._shapes:
                    self._shapes.append(shape)
                return actions
        self._fall_back(reason)
        return denoise(*work)

    def _refusal(self, shape: dict[str, int], context: ExpertContext) -> str | None:
        """Why this call cannot be compiled."""
        if self._failure is not None:
            return self._failure
        if context.route is not None and len(context.route) > 1:
            return f"the batch mixes robots ({', '.join(name for name, _ in context.route)})"
        if shape not in self._shapes and len(self._shapes) >= self.max_shapes:
            return (
                f"compiled for {'; '.join(map(_described, self._shapes))}, got {_described(shape)}; keep shapes fixed, or "
                f"raise max_shapes={self.max_shapes}"
            )
        return None

    def _fall_back(self, reason: str) -> None:
        if self.strict:
            raise RuntimeError(f"compiled denoising: {reason}")
        if not self._warned:
            logger.warning(
                "torch.compile does not apply to this call, so it denoises without (this is said once): %s", reason
            )
            self._warned = True


def _run(compiled: Callable[..., torch.Tensor], whole: bool, work: tuple[Any, ...]) -> torch.Tensor:
    if not whole:
        expert, noise, times, context, solver, continuation = work
        return denoise(expert, noise, times, context, solver, continuation, compiled)
    torch.compiler.cudagraph_mark_step_begin()
    return compiled(*work).clone()  # a CUDA graph writes its next result to the same place


def _shape(noise: torch.Tensor, times: torch.Tensor, context: ExpertContext, whole: bool) -> dict[str, int]:
    return {
        "batch": noise.shape[0],
        "chunk": noise.shape[1],
        "action dimensions": noise.shape[2],
        "prefix tokens": context.prefix_mask.shape[1],
        "states of the condition": context.condition[0][0].shape[2],
        **({"flow steps": len(times)} if whole else {}),
    }


def _described(shape: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in shape.items())


def drop_stale_fusions(expert: ActionExpert) -> None:
    """Undo fused projections whose weights moved away since; compiled code cannot look for itself."""
    for layer in expert.layers:
        for part in (layer.self_attn, layer.cross_attn, layer.mlp):
            if part.fused is not None and not part.fused.intact():
                part.fused = None
