"""Connects the server to `RolloutRecorder`: one dataset per robot, episodes by session. No torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from syvla.serving.contract.requests import ActAnswer, ActRequest, RequestError

from .decision import Decision

if TYPE_CHECKING:
    from .recorder import RolloutRecorder

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Recording(Protocol):
    """What the server tells about its requests: `ServedRecording`, or `serving.rl.episodes.RLEpisodes` in a run of RL.

    Attributes:
        robots: Robots whose requests can be recorded.
    """

    robots: set[str]

    def check(self, request: ActRequest) -> None:
        """Called before a request is answered. Raises RequestError if it belongs to an episode that is over."""
        ...

    def reset(self, session: str, executed: int | None) -> None:
        """Begins the session anew.

        Args:
            session: Name of the session.
            executed: How many actions of the last chunk ran; None: not known.
        """
        ...

    def observe(self, request: ActRequest) -> dict[str, Any]:
        """Records an observation at which no actions are asked for; returns what the reply says about it."""
        ...

    def record(self, request: ActRequest, answer: ActAnswer, sent: np.ndarray, version: str) -> dict[str, Any]:
        """Records an answered request.

        Args:
            request: The request.
            answer: The policy's answer.
            sent: Its actions as they left the server, within the limits.
            version: Of the policy.

        Returns:
            What the reply says about it.
        """
        ...

    def ended(self, session: str, why: str) -> None:
        """Ends what a session left open when the session is forgotten."""
        ...

    def status(self) -> Mapping[str, int]:
        """Episodes by state."""
        ...

    def losses(self) -> Mapping[str, int]:
        """Lost episodes by cause, see `recorder.LOSSES`."""
        ...

    @property
    def lost(self) -> Mapping[str, str]:
        """Lost episodes and why."""
        ...

    def close(self) -> None:
        """Ends all recordings when the server stops."""
        ...


class ServedRecording:
    """Records what the server answers below `root`: there, or in a folder per robot where it serves several.

    Args:
        root: Folder of the dataset or datasets.
        embodiments: Robot to its metadata, see `PolicyBackend.metadata`.

    Raises:
        ImportError, FileExistsError, RuntimeError: See `RolloutRecorder`.
    """

    def __init__(self, root: Path, embodiments: Mapping[str, Mapping[str, Any]]) -> None:
        from .recorder import RolloutRecorder

        self.robots = set(embodiments)
        self.recorders: dict[str, RolloutRecorder] = {}
        for name, entry in embodiments.items():
            self.recorders[name] = RolloutRecorder(
                root if len(embodiments) == 1 else root / name,
                fps=entry.get("control_hz") or 10.0,
                embodiment=name,
                state_names=entry.get("state_names"),
                action_names=entry.get("action_names"),
            )

    def reset(self, session: str, executed: int | None) -> None:
        """The session's episode is over."""
        for recorder in self.recorders.values():
            refusing(lambda recorder=recorder: recorder.end(session, executed=executed))  # type: ignore[misc]

    def check(self, request: ActRequest) -> None:
        """Does nothing: any request may be recorded."""

    def observe(self, request: ActRequest) -> dict[str, Any]:
        """Records an observation at which no actions are asked for; returns what the reply says about it."""
        if not request.session:
            raise RequestError("observe_only: expected a session_id")
        return record_observation(self.recorders[request.embodiment], request.session, request)

    def record(self, request: ActRequest, answer: ActAnswer, sent: np.ndarray, version: str) -> dict[str, Any]:
        """Records an answer to a session; returns what the reply says about it."""
        if not request.session:
            return {}
        recorder = self.recorders[request.embodiment]
        return record_answer(recorder, request.session, request, answer, sent, version)

    def ended(self, session: str, why: str) -> None:
        """Ends what the session left open."""
        for recorder in self.recorders.values():
            recorder.end(session, ended=why)

    def status(self) -> Mapping[str, int]:
        """Episodes of all robots that are open, saved and lost since the server started."""
        counts = [recorder.status() for recorder in self.recorders.values()]
        return {state: sum(count[state] for count in counts) for state in ("open", "saved", "lost")}

    def losses(self) -> Mapping[str, int]:
        """Lost episodes of all robots by cause."""
        counts = [recorder.losses for recorder in self.recorders.values()]
        return {cause: sum(count[cause] for count in counts) for cause in counts[0]} if counts else {}

    @property
    def lost(self) -> Mapping[str, str]:
        """Lost episodes of all robots and why."""
        return {name: why for recorder in self.recorders.values() for name, why in recorder.lost.items()}

    def close(self) -> None:
        """Seals what is open; losses are logged."""
        for recorder in self.recorders.values():
            try:
                recorder.close()
            except RuntimeError as error:
                logger.error("%s", error)


def record_answer(
    recorder: RolloutRecorder, session: str, request: ActRequest, answer: ActAnswer, sent: np.ndarray, version: str
) -> dict[str, str]:
    """Records an answered request as a decision; returns what the reply says about it. See `Recording.record`."""
    decision = Decision(
        images=request.images,
        state=request.state,
        instruction=request.instruction,
        embodiment=request.embodiment,
        chunk=answer.actions,
        seed=request.seed if request.noise is None else -1,
        policy_version=version,
        thought=answer.thought,
        limited=None if sent is answer.actions else sent,
        frozen_steps=int(answer.extras.get("frozen_steps", 0)),
        query_age=float(answer.extras.get("query_age", 0.0)),
        chain=answer.chain,
    )
    return refusing(
        lambda: recorder.record(
            session,
            decision,
            episode_id=request.episode_id,
            executed_before=request.executed_steps,
            request_id=request.request_id,
        )
    )


def record_observation(recorder: RolloutRecorder, session: str, request: ActRequest) -> dict[str, str]:
    """Records an observation without a decision, with the command of a person who acted; returns what the reply says."""
    return refusing(
        lambda: recorder.observe(
            session,
            request.images,
            request.state,
            correction=request.correction,
            executed=request.executed_steps,
            request_id=request.request_id,
        )
    )


def refusing(work: Callable[[], T]) -> T:
    """Calls `work`; what a recorder refuses is the client's error, or a reason to come again later."""
    from .recorder import TooManyEpisodes

    try:
        return work()
    except ValueError as error:
        raise RequestError(str(error)) from None
    except TooManyEpisodes as error:
        raise RequestError(str(error), status=503, cause="too_many_episodes", retry_after=5) from None
