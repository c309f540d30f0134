"""What passes between the server's front and the policy behind its queue: one request, one answer. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .rollout_sampler import ChainStep

COMMAND_SOURCES = ("chunk", "hold", "slow", "callback", "correction")
"""Where the command of a control step was from, as executors report it."""

REPORTED_COUNTS = ("steps", "limited", "gave_way", "seams", *COMMAND_SOURCES)
MOST_REPORTED_STEPS = 512


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


@dataclass(frozen=True)
class PreviousChunk:
    """The part of the previous chunk that has not run when the observation is taken; the new chunk continues it.

    Attributes:
        actions: float32 (L, D_action), physical units; row 0 is the command for the step of the observation. Rows beyond
            the policy's chunk are ignored.
        delay: Rows that will have run before the new chunk is used, 0 <= delay <= L.
        max_guidance_weight: Continue by real-time chunking as published, clipped at this number; None: by its form without
            gradients. See `syvla.modeling_syvla.guided_flow`.
        known: The first `delay` rows are given to a policy that was trained to go on from them, and the others left to it. See
            `syvla.modeling_syvla.known_actions`.
    """

    actions: np.ndarray
    delay: int
    max_guidance_weight: float | None = None
    known: bool = False

    def __post_init__(self) -> None:
        if self.actions.ndim != 2 or not len(self.actions):
            raise ValueError(f"prev_chunk: expected shape (steps, action dimensions), got {self.actions.shape}")
        if self.known and self.max_guidance_weight is not None:
            raise ValueError("max_guidance_weight: guides what known_actions leaves to the policy; give one of the two")
        if not 0 <= self.delay <= len(self.actions):
            raise ValueError(
                f"delay_steps: expected 0 to {len(self.actions)}, the steps of prev_chunk, got {self.delay}"
            )


@dataclass(frozen=True)
class ClientReport:
    """What a robot's executor tells with a request: what it executed, clamped and held when it asks.

    Only the client knows it, so `/metrics` and the live page get it from here. It changes no answer.

    Attributes:
        counts: Some of `REPORTED_COUNTS`, since the executor was made; see `ChunkExecution.counts`.
        first: Number of the first command in `executed`, since the executor was made.
        executed: Commands that ran since the last answered request, float32 (n, D), physical units.
        limited: What limits changed in them, bool (n, D).
        chunk_age_s: Age of the observation of the chunk in use; None without a chunk.
        seam: Size of the last seam, physical units; None before the first one.
    """

    counts: Mapping[str, int]
    first: int
    executed: np.ndarray
    limited: np.ndarray
    chunk_age_s: float | None
    seam: float | None

    def plain(self) -> dict[str, Any]:
        """What goes into a request."""
        return {
            "counts": dict(self.counts),
            "first": self.first,
            "executed": np.asarray(self.executed, np.float32),
            "limited": np.asarray(self.limited, bool),
            "chunk_age_s": self.chunk_age_s,
            "seam": self.seam,
        }


@dataclass(frozen=True, eq=False)
class ActRequest:
    """One checked request, from the decoded message to the policy and the recorder.

    Attributes:
        images: View to uint8 (H, W, 3).
        state: float32 (D_state,), physical units.
        instruction: What the robot is to do.
        seed: Of the flow's initial noise, 0 <= seed < 2**63.
        embodiment: Name of the robot.
        think: Whether to generate a thought; k stands for every k-th call of the session. The policy gets True or False:
            the session has decided by then.
        thought: The session's earlier thought to act on when none is generated.
        max_new_tokens: Longest thought; None: the policy's own.
        num_steps: Euler steps of the flow; None: the policy's own.
        noise: Initial noise of the flow, float32 (chunk_size, D_action), in the model's normalized units; None: drawn from the
            seed.
        previous: The chunk to continue, if any.
        session: Who asks, over several connections; None for a request that belongs to no session.
        episode_id: Name of the episode; a name other than the previous request's begins a new episode.
        reset: A new episode begins with this request.
        request_id: Returned as it came. The session's last one again means that its answer was lost: nothing happens twice.
        executed_steps: How many actions of the previous chunk ran, for the recorder.
        observe_only: No actions are asked for; the observation is recorded.
        correction: float32 (D_action,), physical units: the command of a person who acts at this observation instead of the
            policy; None where the policy acts. Only with `observe_only`.
        deadline_s: Seconds after which an answer is of no use; None: the server's own limit.
        rollout: Whether the answer is recorded as a decision of a named episode.
        client_report: What the robot's executor tells, for `/metrics` and the live page.
        pending_queries: What the policy's `submit_observation` returned for this request.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    seed: int
    embodiment: str
    think: bool | int = False
    thought: str | None = None
    max_new_tokens: int | None = None
    num_steps: int | None = None
    noise: np.ndarray | None = None
    previous: PreviousChunk | None = None
    session: str | None = None
    episode_id: str | None = None
    reset: bool = False
    request_id: str | None = None
    executed_steps: int | None = None
    observe_only: bool = False
    correction: np.ndarray | None = None
    deadline_s: float | None = None
    rollout: bool = False
    client_report: ClientReport | None = None
    pending_queries: PendingQueries | None = None


class PendingQueries(Protocol):
    """Query states that the VLM computes in the background.

    Attributes:
        done: Done once the request can be answered without waiting for the VLM; raises why it cannot be answered.
    """

    done: Future[None]


@dataclass
class ActAnswer:
    """A policy's answer to one request.

    Attributes:
        actions: float32 (T, D_action), physical units.
        thought: The thought that was generated or acted on; None without one.
        timings: Seconds per phase that this answer took: `think`, `queries`, `denoise`.
        extras: Further entries of the reply: numbers, texts, lists.
        chain: The stochastic step that sampled the chunk, for the recorder alone; None if there was none.
        vlm_seconds: Seconds per phase of the background run of the VLM whose query states it acts on. Other answers may
            act on the same ones.
    """

    actions: np.ndarray
    thought: str | None = None
    timings: dict[str, float] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    chain: ChainStep | None = None
    vlm_seconds: dict[str, float] = field(default_factory=dict)


class PolicyBackend(Protocol):
    """What the server needs of a policy.

    Only the server's worker thread calls `answer`, and only its event loop calls `submit_observation`.

    Attributes:
        version: Hash of all that decides the policy's answers: weights and statistics.
    """

    version: str

    def metadata(self) -> dict[str, Any]:
        """Numbers, texts, lists and maps for `/v1/metadata` and the websocket's first frame.

        `embodiments` maps each robot to `state_dim`, `action_dim`, names, units, `control_hz`, `cameras` and
        `normalization_id`. `views` and `action_horizon` are entries of their own.
        """
        ...

    def submit_observation(self, request: ActRequest) -> PendingQueries | None:
        """Gives the observation to a VLM that runs in the background; None if this policy has none. Returns at once.

        The server queues the request when the query states are there: in the worker thread, every request would wait.

        Raises:
            ValueError: A request that this policy cannot answer.
        """
        ...

    def answer(self, requests: Sequence[ActRequest]) -> list[ActAnswer]:
        """Answers requests that may share a batch, see `batching.batch_key`.

        Raises:
            ValueError: One of the requests does not fit. The server then asks for each one alone, to find it.
        """
        ...

    def take_vlm_seconds(self) -> list[Mapping[str, float]]:
        """Seconds per phase of every background run of the VLM that has ended since the last call. From any thread."""
        ...

    def forget(self, session: str) -> None:
        """Drops what is kept for a session whose episode is over."""
        ...

    def warm_up(self, think: bool = False) -> None:
        """Answers a request of its own, so that the first real one is as fast as the later ones.

        Args:
            think: Whether to generate a thought as well.

        Raises:
            ValueError: Actions that are not finite.
        """
        ...

    def close(self) -> None:
        """Ends the policy's background threads."""
        ...


class PolicyHolder:
    """The policy in use. Replacing it takes effect between two batches, never within one.

    Attributes:
        current: The policy for the next batch; None until one is loaded.
    """

    def __init__(self, policy: PolicyBackend | None = None) -> None:
        self.current = policy

    def swap(self, policy: PolicyBackend) -> PolicyBackend | None:
        """Puts another policy in place and returns the one before. One assignment: safe from any thread."""
        before, self.current = self.current, policy
        return before


# ---------------------------------------------------------------------- what clients are told of a robot

PROMISED = (
    "state_dim",
    "action_dim",
    "state_names",
    "action_names",
    "state_units",
    "action_units",
    "control_hz",
    "cameras",
)
"""What a client was told about a robot when it connected. Its loop relies on it for as long as the connection lasts."""


def broken_promises(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What clients of one policy were told and does not hold for another one, one text each.

    Args:
        before, after: Metadata of the policies, see `PolicyBackend.metadata`; other servers' may lack any of it.
    """
    problems = []
    views, robots = after.get("views"), after.get("embodiments") or {}
    if before.get("views") is not None and views != before["views"]:
        problems.append(f"views: expected {before['views']}, got {views}")
    for robot, told in (before.get("embodiments") or {}).items():
        entry = robots.get(robot)
        if entry is None:
            problems.append(f"{robot}: expected this robot, got {sorted(robots)}")
            continue
        problems += [
            f"{robot}.{key}: expected {told[key]}, got {entry.get(key)}"
            for key in PROMISED
            if told.get(key) is not None and entry.get(key) != told[key]
        ]
    return problems
