"""How long a robot waits for its policy, what it does meanwhile, and what each control step tells of it. numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Silence:
    """What a callback of `Watchdog.on_silence` gets.

    Attributes:
        seconds: How long the policy has been silent.
        reason: Why nothing new is there.
        last: The last command, (D,), physical units; None before the first one.
        rest: Actions of the last chunk that have not run, (L, D); empty where they are over or too old.
        state: The robot's state at this step, (D_state,).
    """

    seconds: float
    reason: str
    last: np.ndarray | None
    rest: np.ndarray
    state: np.ndarray


@dataclass(frozen=True)
class Watchdog:
    """How long a robot waits for its policy, and what it does meanwhile. Defaults are ours.

    Attributes:
        max_wait_s: Longest time that a step waits for an answer. None: 0.8 of the control period that the server names, or
            of 0.1 s. `math.inf` for simulators, whose time stands still while they wait.
        max_age_s: Oldest observation whose actions may run.
        max_query_age_s: Oldest observation whose query states may act, where the VLM runs in the background.
        first_wait_s: Longest wait for the first chunk of an episode, before which there is no command to hold; then
            TimeoutError.
        retry_s: Pause after a failed request.
        on_silence: What to do when an answer is due and not there. "finish": run the rest of the chunk, then rest. "hold":
            rest at once. "slow": slow down over `stop_steps` steps, then rest. Or a function that returns the command.
        stop_steps: Steps of "slow".
        rest: Command of a robot at rest: the last one (for target states) or zero (for velocities and differences).
        continue_across_instructions: Whether the old chunk runs until the answer to a new instruction is there, and is
            continued by that answer. Otherwise a new instruction ends the old chunk.
    """

    max_wait_s: float | None = None
    max_age_s: float = 10.0
    max_query_age_s: float = math.inf
    first_wait_s: float = 30.0
    retry_s: float = 0.5
    on_silence: Literal["finish", "hold", "slow"] | Callable[[Silence], np.ndarray] = "finish"
    stop_steps: int = 5
    rest: Literal["last", "zero"] = "last"
    continue_across_instructions: bool = False

    def __post_init__(self) -> None:
        for name in ("max_age_s", "max_query_age_s", "first_wait_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0 seconds, got {getattr(self, name)}")
        if self.max_wait_s is not None and not self.max_wait_s >= 0:
            raise ValueError(f"max_wait_s: expected at least 0 seconds, got {self.max_wait_s}")
        if not self.retry_s >= 0 or self.stop_steps < 1:
            raise ValueError(f"expected retry_s >= 0 and stop_steps >= 1, got {self.retry_s} and {self.stop_steps}")
        if not callable(self.on_silence) and self.on_silence not in ("finish", "hold", "slow"):
            raise ValueError(f"on_silence: expected finish, hold, slow or a function, got {self.on_silence!r}")
        if self.rest not in ("last", "zero"):
            raise ValueError(f"rest: expected last or zero, got {self.rest!r}")


@dataclass(frozen=True)
class StepReport:
    """What one control step did.

    Attributes:
        source: Where the command is from: "chunk", "hold", "slow" or "callback", or "correction" of a person who acts.
        chunk_age_s: Seconds since the observation that the chunk in use answers; None without a chunk.
        query_age_s: Seconds since the observation of the query states in use; None where the server names none.
        silent_s: Seconds since an answer became due that is not there; 0 otherwise.
        reason: Why the command is not from a new chunk; empty if nothing is missing.
        dropped: Why an answer was dropped at this step; empty if none was.
        limits: What the limits changed, one text each.
        policy_version: Of the chunk in use, where the server names it.
        action: The command before limits, (D,).
    """

    source: str
    chunk_age_s: float | None = None
    query_age_s: float | None = None
    silent_s: float = 0.0
    reason: str = ""
    dropped: str = ""
    limits: list[str] = field(default_factory=list)
    policy_version: str | None = None
    action: np.ndarray | None = None
