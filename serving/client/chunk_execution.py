"""Which command a robot gets at each control step: from a chunk, or at rest where the policy is silent. numpy only.

`ChunkExecution` decides; `chunk_executor` sends the requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from syvla.serving.contract.action_limits import GAVE_WAY, ActionLimits, CommandLimiter, UnsafeActions
from syvla.serving.contract.answer_delay import DelayEstimate, MeasuredDelay
from syvla.serving.contract.chunk_seams import ChunkOverlap, SeamMode, Seams
from syvla.serving.contract.requests import MOST_REPORTED_STEPS, REPORTED_COUNTS, ClientReport

from .silence import Silence, StepReport, Watchdog

logger = logging.getLogger(__name__)


class _Answer(Protocol):
    def done(self) -> bool:
        """Whether waiting for it takes no time."""

    def exception(self) -> BaseException | None:
        """Why there is none, once done."""

    def result(self) -> dict[str, Any]:
        """The reply, once done."""


Answer = TypeVar("Answer", bound=_Answer)


class ChunkExecution(Generic[Answer]):
    """Decides which action of which chunk comes next, and when to ask for another chunk. Subclasses send the requests.

    Attributes:
        last_reply: The reply whose chunk is in use or was last; None before the first one.
        seam: Largest difference of the two chunks' commands for the step at which the last one was entered, physical
            units, before limits. None before the second chunk.
        report: What the last step did.
        counts: How often what happened, since the executor was made: `steps`, the sources `chunk`, `hold`, `slow` and
            `callback`, `correction`, `limited`, `seams`, `requests`, `failures`, `dropped_late`, `dropped_query_age`,
            `dropped_instruction`, `refused`, `gave_way` (see `CommandLimiter.gave_way`), and `corrections_lost`, which could
            not be recorded.
    """

    def __init__(
        self,
        client: Any,
        replan_steps: int,
        prefetch: int | MeasuredDelay,
        seams: Seams | SeamMode | None,
        watchdog: Watchdog | None,
        limits: ActionLimits | Mapping[str, Any] | None,
    ) -> None:
        self._delay = DelayEstimate(prefetch) if isinstance(prefetch, MeasuredDelay) else None
        self._most_prefetch = prefetch.most if isinstance(prefetch, MeasuredDelay) else prefetch
        if replan_steps < 1 or not 0 <= self._most_prefetch < replan_steps:
            raise ValueError(
                f"expected replan_steps >= 1 and 0 <= prefetch < replan_steps, got {replan_steps=} {prefetch=}"
            )
        self.client = client
        self.replan_steps = replan_steps
        self.seams = Seams.of(seams or ("rtc_identity" if self._most_prefetch else "switch"))
        self._overlap = ChunkOverlap(self.seams)
        self.watchdog = watchdog or Watchdog()
        self.report = StepReport("hold")
        self.counts: Counter[str] = Counter()
        self._own_limits = limits
        self._limiter: CommandLimiter | None = None
        self._ran_commands: deque[tuple[np.ndarray, np.ndarray]] = deque(
            maxlen=MOST_REPORTED_STEPS
        )  # not yet told to the server
        self._limits_of: Any = None  # the metadata that the limits were read from
        self._pending: Answer | None = None
        self._recording: Answer | None = None  # the last correction that is on its way
        self._abandoned: Answer | None = None  # still under way, though nobody wants it: a connection has one at a time
        self._begin()

    def _begin(self) -> None:
        """Forgets chunk and pending request, for a new episode."""
        self.last_reply: dict[str, Any] | None = None
        self.seam: float | None = None
        self._chunk: np.ndarray | None = None
        self._chunk_time = 0.0  # of the observation that it answers
        self._position = 0  # step of the chunk that comes next, from that observation
        self._ran: int | None = None  # steps of the last answer that ran; None before the first answer
        self._asked_at = 0.0
        self._since = 0  # steps of the chunk since the pending request's observation
        self._due = 0  # steps after which the pending request's answer is expected
        self._steps_waited: int | None = None  # control steps since the pending request; None once its answer is there
        self._overlap.clear()
        self._instruction: str | None = None
        self._replan = False
        self._error, self._retry_at = "", 0.0
        self._silent_since: float | None = None
        self._slowing: list[np.ndarray] | None = None
        self._dropped = ""
        self._moved = False  # whether the episode has had a command
        self._abandon()
        if self._limiter is not None:
            self._limiter.new_episode()

    @property
    def prefetch(self) -> int:
        """Control steps that the next answer may take: as given, or as measured."""
        return self._most_prefetch if self._delay is None else self._delay.steps

    # ------------------------------------------------------------------ asking

    def _begin_step(self, prompt: str) -> None:
        """Takes note of the instruction; a new one ends the old one's chunk and request."""
        self._dropped, self._step_time = "", self._clock()
        if self._pending is not None and self._steps_waited is not None:
            self._steps_waited += 1
        if self._instruction is not None and prompt != self._instruction:
            self._replan, self._error, self._retry_at = True, "", 0.0
            if self._pending is not None:
                self.counts["dropped_instruction"] += 1
                self._dropped = "the instruction changed while its request was under way"
            self._abandon()
            if not self.watchdog.continue_across_instructions:
                self._drop_chunk()
        self._instruction = prompt

    def _abandon(self) -> None:
        if self._pending is not None:
            self._abandoned, self._pending = self._pending, None

    def _request(self, extras: Mapping[str, Any]) -> dict[str, Any] | None:
        """Options of the request with this step's observation; None if this step sends no request."""
        if self._abandoned is not None and self._abandoned.done():
            if self._abandoned.exception() is None and self._ran is not None:
                self._ran = self._since  # the server counts from its last answer, wanted or not
            self._abandoned = None
        now, left = self._clock(), self._left()
        if self._pending is not None or self._abandoned is not None or now < self._retry_at:
            return None
        if left > self.prefetch and self._position < self.replan_steps and not self._replan:
            return None
        options: dict[str, Any] = {**extras}
        if self._ran is not None:
            options["executed_steps"] = self._ran
        if (getattr(self.client, "metadata", None) or {}).get("client_reports"):
            options["client_report"] = self._client_report().plain()
        if self._chunk is not None and self.seams.asks_policy and left:
            options |= {"prev_chunk": self._chunk[self._position :], "delay_steps": min(self.prefetch, left)}
            options |= self.seams.request_options
        return options

    def _asked(self, answer: Answer) -> None:
        self.counts["requests"] += 1
        self._pending, self._since, self._replan, self._asked_at = answer, 0, False, self._step_time
        self._due, self._steps_waited = self.prefetch, 0

    def _client_report(self) -> ClientReport:
        """What the server may show of this robot."""
        steps, ran = self.counts["steps"], list(self._ran_commands)
        self._told = steps
        return ClientReport(
            {name: self.counts[name] for name in REPORTED_COUNTS},
            steps - len(ran),
            np.array([command for command, _ in ran], np.float32),
            np.array([limited for _, limited in ran], bool),
            None if self._chunk is None else self._clock() - self._chunk_time,
            self.seam,
        )

    def _drop_chunk(self) -> None:
        self._chunk = None
        self._overlap.clear()

    def _left(self) -> int:
        """Actions of the chunk that may still run."""
        if self._chunk is None or self._clock() - self._chunk_time > self.watchdog.max_age_s:
            return 0
        return len(self._chunk) - self._position

    def _patience(self) -> float:
        """Seconds that this step may still wait for the request that is under way."""
        waited = self._clock() - self._step_time
        if self._left() == 0 and not self._moved and not callable(self.watchdog.on_silence):
            return _bounded(self.watchdog.first_wait_s - waited)
        due = self._left() == 0 or (self._due == 0 and self._since == 0)
        due = due or (self._since >= self._due and self.watchdog.on_silence != "finish")
        return _bounded(self._longest_wait() - waited) if due else 0.0

    def _longest_wait(self) -> float:
        if self.watchdog.max_wait_s is not None:
            return self.watchdog.max_wait_s
        return 0.8 / float(self._robot().get("control_hz") or 10.0)

    def _robot(self) -> Mapping[str, Any]:
        """What the server says about the robot; empty for servers that say nothing, and before the first connection."""
        metadata = getattr(self.client, "metadata", None) or {}
        robots = metadata.get("embodiments") or {}
        name = self._embodiment or metadata.get("default_embodiment")
        entry = robots.get(name) or (next(iter(robots.values())) if len(robots) == 1 else {})
        return entry if isinstance(entry, Mapping) else {}

    _embodiment: str | None = None
    _told = 0  # commands that the last request told of
    _clock = staticmethod(time.monotonic)

    def _taken_over(self, action: np.ndarray, state: np.ndarray, prompt: str) -> tuple[np.ndarray, int | None]:
        """The command of a person, (D,), within the limits, and how many actions of the last answer ran before it.

        Raises:
            ValueError: The episode has had no chunk yet, which a correction is one of.
            UnsafeActions: The command must not run.
        """
        if not self._moved:
            raise ValueError(
                "correct: expected after the episode's first step of the policy; what a person does before is a demonstration"
            )
        self._step_time = self._clock()
        command, notes = self._limited(np.asarray(action, np.float32), state)
        self._abandon()
        self._drop_chunk()
        self._instruction, self._dropped, self._error, self._retry_at = prompt, "", "", 0.0
        self._silent_since, self._slowing = None, None
        ran, self._ran = self._ran, None  # the server knows it from the first correction on
        self._count("correction", notes)
        self._ran_commands.append((command, np.asarray(command != action)))
        self.report = self._reported("correction", "", notes, np.asarray(action))
        return command, ran

    def _still_recording(self) -> bool:
        """Whether this step has to do without the policy, since corrections are on their way: one request at a time."""
        if self._recording is not None and not self._recording.done():
            self._dropped = "corrections are still being recorded"
            return True
        self._recording = None
        return False

    @staticmethod
    def _ran_before(ran: int | None, abandoned: Answer | None, since: int) -> dict[str, Any]:
        """What a correction says of the chunk before it; `since`: steps since the observation of the request abandoned."""
        if ran is None:
            return {}
        answered = abandoned is not None and abandoned.exception() is None
        return {"executed_steps": since if answered else ran}  # the server counts from its last answer, wanted or not

    def _correction_lost(self, error: BaseException) -> dict[str, Any]:
        self.counts["corrections_lost"] += 1
        logger.error("a correction could not be recorded: %s", str(error) or type(error).__name__)
        return {}

    # ------------------------------------------------------------------ receiving

    def _collect(self) -> None:
        """Takes the pending answer if it is there and this step needs it, or if it is due."""
        answer = self._pending
        if answer is None or not answer.done():
            return
        error = answer.exception()
        if error is None and self._steps_waited is not None:
            if self._delay is not None:
                self._delay.add(self._steps_waited)
            self._steps_waited = None
        if error is None and self._left() and self._since < self._due:
            return
        self._pending = None
        if error is None:
            self._received(answer.result())
            return
        self.counts["failures"] += 1
        if not self._moved:
            raise error  # the robot rests, and the caller learns at once
        self._failed(f"{type(error).__name__}: {error}")

    def _failed(self, why: str) -> None:
        logger.warning("the policy gave no actions: %s", why)
        self._error, self._retry_at = why, self._clock() + self.watchdog.retry_s

    def _received(self, reply: dict[str, Any]) -> None:
        while len(self._ran_commands) > self.counts["steps"] - self._told:  # the server knows these by now
            self._ran_commands.popleft()
        chunk = np.asarray(reply["actions"])
        age = self._clock() - self._asked_at
        states_age = age + float(reply.get("query_age") or 0.0)
        self._ran = self._since
        if chunk.ndim != 2 or (self._limiter is not None and chunk.shape[1] != len(self._limiter.limits.low)):
            self.counts["failures"] += 1
            self._failed(f"actions: expected (steps, action dimensions) as before, got shape {chunk.shape}")
        elif age > self.watchdog.max_age_s:
            self._drop("dropped_late", f"the answer came after {age:.3g} s, max_age_s is {self.watchdog.max_age_s:g}")
        elif states_age > self.watchdog.max_query_age_s:
            limit = self.watchdog.max_query_age_s
            self._drop(
                "dropped_query_age", f"its query states are {states_age:.3g} s old, max_query_age_s is {limit:g}"
            )
        elif self._since >= len(chunk):
            steps = f"the answer came {self._since} steps after its observation, but the chunk has {len(chunk)}"
            self._drop("dropped_late", f"{steps}; lower the control rate or replan_steps")
        else:
            if not self._moved:
                self._require_overlap(len(chunk))
            if self._left():
                rest = self._chunk[self._position :]  # type: ignore[index]
                self.seam = float(np.abs(chunk[self._since] - rest[0]).max())
                self.counts["seams"] += 1
                self._overlap.replaced(rest, self._chunk_time)
            self._chunk, self._position, self._chunk_time = chunk, self._since, self._asked_at
            self.last_reply, self._error, self._silent_since, self._slowing = reply, "", None, None

    def _require_overlap(self, steps: int) -> None:
        """Raises ValueError for chunks that leave the chosen seams nothing to do."""
        mode, least = self.seams.mode, self.replan_steps + (0 if self.seams.asks_policy else self._most_prefetch)
        if mode != "switch" and steps <= least and not (self.seams.asks_policy and self._most_prefetch):
            raise ValueError(
                f"seams: {mode!r} has an effect where chunks overlap, so it needs chunks of more than {least} actions "
                f"(replan_steps and prefetch), got {steps}; lower them, or take seams='switch'"
            )

    def _drop(self, count: str, why: str) -> None:
        self.counts[count] += 1
        self._dropped = why
        logger.warning("an answer was dropped: %s", why)

    # ------------------------------------------------------------------ commanding

    def _command(self, state: np.ndarray) -> np.ndarray:
        """The command of this step, (D,), within the limits."""
        reason = self._silence()
        command: np.ndarray | None = None
        notes: list[str] = []
        source = "chunk"
        if self._left() and (not reason or self.watchdog.on_silence == "finish"):
            self._overlap.forget_before(self._step_time - self.watchdog.max_age_s)
            try:
                action = self._overlap.command(self._chunk[self._position])  # type: ignore[index]
                command, notes = self._limited(action, state)
            except UnsafeActions as error:
                self.counts["refused"] += 1
                self._drop_chunk()
                if not self._moved:
                    raise
                self._failed(str(error))
                reason = self._silence()
            else:
                self._position, self._since, self._ran = self._position + 1, self._since + 1, (self._ran or 0) + 1
                self._overlap.advance()
        if command is None:
            source, action = self._at_rest(reason, state)
            command, notes = self._limited(action, state)
        self._moved = True
        self._count(source, notes)
        self._ran_commands.append((command, np.asarray(command != action)))
        self.report = self._reported(source, reason, notes, action)
        return command

    def _count(self, source: str, notes: list[str]) -> None:
        gave_way = any(GAVE_WAY in note for note in notes)
        self.counts.update({"steps": 1, source: 1, "limited": bool(notes), "gave_way": gave_way})

    def _silence(self) -> str:
        """Why an answer that is due is not there; empty if none is due."""
        if self._error:
            reason = self._error
        elif self._pending is not None and (self._since >= self._due or not self._left()):
            reason = f"no answer after {self._clock() - self._asked_at:.3g} s"
        elif self._left():
            return ""
        else:
            reason = self._dropped or "an older request is still under way"
        if self._silent_since is None:
            self._silent_since = self._step_time
        return reason

    def _limited(self, action: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, list[str]]:
        metadata = getattr(self.client, "metadata", None)
        if self._limiter is None or metadata is not self._limits_of:
            limits = self._limits(len(action))
            fresh = CommandLimiter(limits)
            if self._limiter is not None:
                fresh.follow(self._limiter)
            self._limiter, self._limits_of = fresh, metadata
        return self._limiter.limit(action, state)

    def _limits(self, dim: int) -> ActionLimits:
        """The server's limits of the robot and the caller's own, both at once."""
        robot, own = self._robot(), self._own_limits
        names = robot.get("action_names")
        names = names if names and len(names) == dim else None
        served, hz = ActionLimits.of(robot.get("limits"), dim, names), robot.get("control_hz")
        if own is None:
            return served
        return served.joined(own if isinstance(own, ActionLimits) else ActionLimits.of(own, dim, names, hz))

    def _at_rest(self, reason: str, state: np.ndarray) -> tuple[str, np.ndarray]:
        """Where the command of a robot without a chunk is from, and the command before limits."""
        last = None if self._limiter is None else self._limiter.last
        behavior = self.watchdog.on_silence
        if callable(behavior):
            seconds = self._step_time - (self._silent_since or self._step_time)
            left = self._left()
            width = 0 if last is None else len(last)
            rest = self._chunk[self._position :] if left and self._chunk is not None else np.zeros((0, width))
            return "callback", np.asarray(behavior(Silence(seconds, reason, last, rest, state)))
        if last is None or not self._moved:
            waited = self.watchdog.first_wait_s
            raise TimeoutError(f"no first chunk within {waited:g} s ({reason}); is the server running?")
        resting = last if self.watchdog.rest == "last" else np.zeros_like(last)
        if behavior == "slow":
            if self._slowing is None:
                self._slowing = self._slowed(last)
            if self._slowing:
                return "slow", self._slowing.pop(0)
        return "hold", resting

    def _slowed(self, last: np.ndarray) -> list[np.ndarray]:
        """Commands that bring a robot to rest."""
        assert self._limiter is not None
        fractions = 1 - np.arange(1, self.watchdog.stop_steps) / self.watchdog.stop_steps
        if self.watchdog.rest == "zero":
            return [last * fraction for fraction in fractions]
        return [last + self._limiter.velocity * way for way in np.cumsum(fractions)]

    def _reported(self, source: str, reason: str, notes: list[str], action: np.ndarray) -> StepReport:
        now, reply = self._clock(), self.last_reply or {}
        chunk_age = None if self._chunk is None else now - self._chunk_time
        states_age = reply.get("query_age")
        return StepReport(
            source,
            chunk_age_s=chunk_age,
            query_age_s=None if states_age is None or chunk_age is None else chunk_age + float(states_age),
            silent_s=0.0 if self._silent_since is None else now - self._silent_since,
            reason=reason,
            dropped=self._dropped,
            limits=notes,
            policy_version=reply.get("policy_version"),
            action=np.array(action),
        )


def _bounded(seconds: float) -> float:
    """Seconds as the waiting functions of threads take them."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)
