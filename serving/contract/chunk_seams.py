"""How one action chunk goes over into the next: modes of one option, for numpy arrays and torch tensors alike.

- "switch": enter the new chunk as it is.
- "blend": go over from the old chunk to the new one linearly, within `blend_steps` control steps.
- "ensemble": every command is the weighted mean of all chunks that have an action for its step, w_i = exp(-decay * i) with
  i = 0 for the oldest chunk (temporal ensembling, ACT: Zhao et al. 2023, arXiv 2304.13705, algorithm 2).
- "rtc": the policy makes the new chunk continue the old one, by real-time chunking as published (Black et al. 2025, arXiv
  2506.07339): guidance through the Jacobian of the predicted end point, clipped at `max_guidance_weight`.
- "rtc_identity": the same with the identity for the Jacobian, which takes no gradient.
- "rtc_trained": the policy is given what runs meanwhile, and was trained to go on from it (arXiv 2512.05964); for checkpoints
  that were trained with `simulated_delay`.

The first three need nothing of the policy; the last three need one that takes the rest of the old chunk with a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

SeamMode = Literal["switch", "blend", "ensemble", "rtc", "rtc_identity", "rtc_trained"]
MODES: tuple[str, ...] = get_args(SeamMode)

_OPTION_OF = {"blend": "blend_steps", "ensemble": "decay", "rtc": "max_guidance_weight"}


@dataclass(frozen=True)
class Seams:
    """A mode and its option. An option of another mode is refused.

    Attributes:
        mode: See the module.
        blend_steps: Of "blend"; 4 by default (ours).
        decay: Of "ensemble", per chunk; 0.01 by default, as ACT.
        max_guidance_weight: Of "rtc"; 5 by default, as its paper.
    """

    mode: SeamMode = "switch"
    blend_steps: int | None = None
    decay: float | None = None
    max_guidance_weight: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"seams: expected one of {', '.join(MODES)}, got {self.mode!r}")
        for mode, name in _OPTION_OF.items():
            if getattr(self, name) is not None and mode != self.mode:
                raise ValueError(
                    f"{name}: belongs to seams={mode!r} and has no effect with {self.mode!r}; leave it out"
                )
        if self.blend_steps is not None and self.blend_steps < 1:
            raise ValueError(f"blend_steps: expected at least 1 control step, got {self.blend_steps}")
        if self.decay is not None and not 0 <= self.decay < np.inf:
            raise ValueError(f"decay: expected a number from 0, got {self.decay}")
        if self.max_guidance_weight is not None and not 0 < self.max_guidance_weight <= 100:
            raise ValueError(
                f"max_guidance_weight: expected a number above 0, up to 100, got {self.max_guidance_weight}"
            )

    @classmethod
    def of(cls, seams: Seams | str) -> Seams:
        """The mode of a name with its default option, or what is one already."""
        return seams if isinstance(seams, Seams) else cls(seams)  # type: ignore[arg-type]

    @property
    def asks_policy(self) -> bool:
        """Whether requests carry the rest of the old chunk."""
        return self.mode in ("rtc", "rtc_identity", "rtc_trained")

    @property
    def request_options(self) -> dict[str, float | bool]:
        """What a request with the rest of the old chunk says besides."""
        if self.mode == "rtc_trained":
            return {"known_actions": True}
        return {"max_guidance_weight": self.max_guidance_weight or 5.0} if self.mode == "rtc" else {}


class ChunkOverlap:
    """What older chunks have to say about the commands of the newest one. It is told of every step that runs.

    Args:
        seams: Mode; only "blend" and "ensemble" keep older chunks.
    """

    def __init__(self, seams: Seams) -> None:
        self.seams = seams
        self.clear()

    def clear(self) -> None:
        """Forgets the older chunks: the next command is the newest chunk's own."""
        self._older: list[tuple[Any, float]] = []  # what is left of each from this step on, oldest first, and its time
        self._blended = self._blend_steps = 0

    def replaced(self, rest: Any, time: float = 0.0) -> None:
        """Takes note of the old chunk when a new one is entered.

        Args:
            rest: Its actions from this step on, (L, ...).
            time: Of the observation that it answers.
        """
        if self.seams.mode == "ensemble":
            self._older.append((rest, time))
        elif self.seams.mode == "blend":
            self._older, self._blended = [(rest, time)], 0
            self._blend_steps = min(self.seams.blend_steps or 4, len(rest))

    def forget_before(self, time: float) -> None:
        """Forgets chunks that answer older observations."""
        self._older = [(rest, since) for rest, since in self._older if since >= time]

    def command(self, action: Any) -> Any:
        """The command of this step, in place of the newest chunk's action; the same object where no other has a say."""
        older = [rest[0] for rest, _ in self._older if len(rest)]
        if not older:
            return action
        if self.seams.mode == "blend":
            if self._blended >= self._blend_steps:
                return action
            share = (self._blended + 1) / (self._blend_steps + 1)
            return older[0] * (1 - share) + action * share
        decay = 0.01 if self.seams.decay is None else self.seams.decay
        weights = np.exp(-decay * np.arange(len(older) + 1))
        weights /= weights.sum()
        return sum(action * float(weight) for action, weight in zip([*older, action], weights, strict=True))

    def advance(self) -> None:
        """The step's command has run."""
        self._older = [(rest[1:], time) for rest, time in self._older if len(rest) > 1]
        self._blended += 1
