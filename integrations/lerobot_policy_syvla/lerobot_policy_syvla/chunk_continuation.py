"""How one action chunk goes over into the next in LeRobot: by real-time chunking, blended, or as a mean of chunks.

LeRobot's RTC engine (`--inference.type=rtc`) asks ahead of time, measures the delay of answers, and passes what is left of the
running chunk; its `RTCConfig` says how strongly to continue it. In LeRobot's synchronous loop (`select_action`) the policy
keeps its own last chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc import RTCConfig, RTCProcessor
from torch import Tensor

from syvla.serving.contract.chunk_seams import ChunkOverlap, Seams


def continuation_options(
    left_over: Tensor, delay: int, rtc: RTCConfig | None, seams: Seams, shape: tuple[int, int]
) -> dict[str, Any]:
    """Arguments of `SyVLAModel.predict_actions` that make a chunk continue another one.

    Args:
        left_over: What is left of the running chunk, normalized, (B, L, D) or (L, D).
        delay: Its first steps, which will have run when the new chunk is there.
        rtc: LeRobot's schedule, horizon and guidance; None: those of real-time chunking as published, over all that is left.
        seams: "rtc" (guidance through the Jacobian, one backward pass per flow step), "rtc_identity" (without gradients) or
            "rtc_trained" (the first `delay` steps are given to a model that was trained with `simulated_delay`).
        shape: (T, D_max) of the model's chunks.

    Raises:
        ValueError: A delay below 0, or another number of dimensions.
    """
    steps, width = shape
    rest = without_padding(left_over if left_over.ndim == 3 else left_over[None])[:, :steps].float()
    if delay < 0 or rest.ndim != 3 or rest.shape[2] > width:
        raise ValueError(
            f"prev_chunk_left_over: expected (B, steps, up to {width}) and inference_delay >= 0, got "
            f"{tuple(left_over.shape)} and {delay}"
        )
    if not rest.shape[1]:
        return {}
    rtc = rtc or RTCConfig(
        prefix_attention_schedule=RTCAttentionSchedule.EXP, max_guidance_weight=5.0, execution_horizon=steps
    )
    overlap = rest.shape[1]
    weights = RTCProcessor(rtc).get_prefix_weights(min(delay, overlap), min(rtc.execution_horizon, overlap), steps)
    target = rest.new_zeros(rest.shape[0], steps, width)
    target[:, :overlap, : rest.shape[2]] = rest
    if seams.mode == "rtc_trained":
        return {"known_actions": (target, torch.full((len(rest),), min(delay, overlap), device=rest.device))}
    options: dict[str, Any] = {"continuation": (target, weights.to(rest)[None].expand(len(rest), -1))}
    if seams.mode == "rtc":
        options["max_guidance_weight"] = float(rtc.max_guidance_weight)
    return options


def without_padding(left_over: Tensor) -> Tensor:
    """(B, L, D) without its last steps that are zero throughout: LeRobot fills what is left up to a fixed length with them."""
    moving = left_over.ne(0).any(2).any(0)
    real = int(moving.nonzero().max()) + 1 if moving.any() else 0
    return left_over[:, :real]


def blended_from(chunk: Tensor, left_over: Tensor, delay: int, seams: Seams) -> Tensor:
    """A new chunk (B, T, D) that goes over linearly from what is left of the running one, from step `delay` on."""
    rest = without_padding(left_over if left_over.ndim == 3 else left_over[None])
    overlap = ChunkOverlap(seams)
    overlap.replaced(rest[:, delay : chunk.shape[1]].transpose(0, 1).to(chunk))
    steps = list(chunk.transpose(0, 1))
    for step in range(delay, len(steps)):
        steps[step] = overlap.command(steps[step])
        overlap.advance()
    return torch.stack(steps, dim=1)


class ExecutedChunks:
    """The chunks of LeRobot's synchronous loop: one action per call, the seams between chunks included.

    Args:
        seams: How chunks go over into each other.
        steps: Actions of each chunk that run.
    """

    def __init__(self, seams: Seams, steps: int) -> None:
        self.seams, self.steps = seams, steps
        self._overlap = ChunkOverlap(seams)
        self._chunk: Tensor | None = None  # (T, B, D)
        self._position = 0

    @property
    def due(self) -> bool:
        """Whether the next action needs a new chunk."""
        return self._chunk is None or self._position >= self.steps

    @property
    def left_over(self) -> Tensor | None:
        """What has not run of the last chunk, (B, L, D); None before the first one."""
        return None if self._chunk is None else self._chunk[self._position :].transpose(0, 1)

    def enter(self, chunk: Tensor) -> None:
        """Takes a new chunk, (B, T, D)."""
        if self._chunk is not None:
            self._overlap.replaced(self._chunk[self._position :])
        self._chunk, self._position = chunk.transpose(0, 1), 0

    def next_action(self) -> Tensor:
        """(B, D)."""
        assert self._chunk is not None
        action: Tensor = self._overlap.command(self._chunk[self._position])
        self._position += 1
        self._overlap.advance()
        return action
