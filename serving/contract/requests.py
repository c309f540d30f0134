"""What passes between the server's front and the policy behind its queue: one request, one answer. No torch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .rollout_sampler import ChainStep


class RequestError(Exception):
    """A request that gets no actions.

    Attributes:
        status: HTTP status; over a websocket the text alone is sent.
        cause: Label of the rejection in `/metrics`.
        retry_after: Seconds after which another attempt makes sense, or None.
    """

    def __init__(self, message: str, *, status: int = 422, cause: str = "bad_request", retry_after: int | None = None):
        super().__init__(message)
        self.status, self.cause, self.retry_after = status, cause, retry_after


@dataclass(frozen=True, eq=False)
class ActRequest:
    """A checked request.

    Attributes:
        images: View to uint8 (H, W, 3).
        state: float32 (D_state,), physical units.
        instruction: What the robot is to do.
        seed: Of the flow's initial noise, 0 <= seed < 2**63.
        embodiment: Name of the robot.
        think: Whether to generate a thought now.
        thought: The session's earlier thought to act on, where none is generated.
        max_new_tokens: Longest thought; None: the policy's own.
        num_steps: Euler steps of the flow; None: the policy's own.
        session: Who asks; None for a request that belongs to no session.
        rollout: Whether the answer is recorded as a decision of a named episode.
        options: Entries of the request that the policy reads itself, such as `prev_chunk` and `delay_steps`.
        prepared: What the policy's `prepare` returned for it; None where it was not called.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    seed: int
    embodiment: str
    think: bool = False
    thought: str | None = None
    max_new_tokens: int | None = None
    num_steps: int | None = None
    session: str | None = None
    rollout: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    prepared: Prepared | None = None


class Prepared(Protocol):
    """Something that happens elsewhere before a request can be answered; done when `ready` is."""

    ready: Future[None]


@dataclass
class ActAnswer:
    """A policy's answer to one request.

    Attributes:
        actions: float32 (T, D_action), physical units.
        thought: The thought that was generated or acted on; None without one.
        timings: Seconds per phase that this answer took: `think`, `queries`, `denoise`.
        extras: Further entries of the reply: numbers, texts, lists.
        chain: Where the chunk was sampled by a stochastic step: that step, for the recorder alone.
        look_timings: Seconds per phase of the VLM's run in the background whose query states it acts on. Other answers
            may act on them too.
    """

    actions: np.ndarray
    thought: str | None = None
    timings: dict[str, float] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    chain: ChainStep | None = None
    look_timings: dict[str, float] = field(default_factory=dict)


class ServedPolicy(Protocol):
    """What the server needs of a policy. Only its worker thread calls `answer`, only its event loop `prepare`.

    Attributes:
        version: Hash of all that decides its answers: weights and statistics.
    """

    version: str

    def metadata(self) -> dict[str, Any]:
        """Numbers, texts, lists and maps for `/v1/metadata` and the websocket's first frame.

        `embodiments` maps each robot to `state_dim`, `action_dim`, names, units, `control_hz`, `cameras` and
        `normalization_id`; `views` and `action_horizon` stand beside it.
        """
        ...

    def batch_key(self, request: ActRequest) -> Hashable:
        """Requests with equal keys may be answered together."""
        ...

    def prepare(self, request: ActRequest) -> Prepared | None:
        """What the server waits for before it queues a request, since in the worker all would wait; must not wait itself.

        Raises:
            ValueError: A request that this policy cannot answer.
        """
        ...

    def answer(self, requests: Sequence[ActRequest]) -> list[ActAnswer]:
        """Answers requests of one batch key.

        Raises:
            ValueError: A request that does not fit; the server then asks for each one alone to find it.
        """
        ...

    def new_looks(self) -> list[dict[str, float]]:
        """Seconds per phase of every run of the VLM in the background that has ended since the last call; any thread's."""
        ...

    def forget(self, session: str) -> None:
        """A session's episode is over; what was kept for it may go."""
        ...

    def warm_up(self, think: bool = False) -> None:
        """Makes the first real request as fast as the later ones; with `think`, thoughts too."""
        ...

    def close(self) -> None:
        """Ends what the policy runs in the background."""
        ...


class PolicyHolder:
    """The policy in use. Replacing it takes effect between two batches, never within one."""

    def __init__(self, policy: ServedPolicy | None = None) -> None:
        self._policy = policy

    @property
    def current(self) -> ServedPolicy | None:
        """The policy for the next batch; None until one is loaded."""
        return self._policy

    def swap(self, policy: ServedPolicy) -> ServedPolicy | None:
        """Puts another policy in place and returns the one before. One assignment: safe from any thread."""
        before, self._policy = self._policy, policy
        return before
