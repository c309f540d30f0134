"""Slots for episodes, in this process or in worker processes; both answer the same commands in the same way.

Which process a slot lives in decides nothing but speed: batches of the policy are made of slots, and an episode's
outcome follows from its seed. A worker process starts afresh (spawn) and never imports torch. What goes through its
pipe is plain values and arrays.

A worker that dies takes the episodes of all its slots along. Commands are carried out in order, so the first one that
was not answered is the one whose environment died; the others are run again without counting as a second attempt.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from .baselines import BASELINES, Baseline
from .environments import ENVIRONMENTS, Backend, find_backend
from .episode_slot import EpisodeSlot, SlotReply, SlotSettings

logger = logging.getLogger(__name__)

WORKER_TIMEOUT = 600.0
"""Seconds without an answer of any environment after which those that have not answered are taken for dead. Longer than
the slowest simulator takes to compile a scene; without a bound one that hangs would stop the evaluation for ever."""

Command = tuple[Any, ...]
"""Name of a method of `EpisodeSlot` and its arguments."""


class WorkerFault(RuntimeError):
    """Something other than the environment went wrong in a worker process."""


class Slots(Protocol):
    """A fixed number of slots, numbered from 0."""

    def exchange(self, commands: Mapping[int, Command]) -> dict[int, SlotReply]:
        """Carries out one command in each of the slots named, and returns all answers."""
        ...

    def close(self) -> None:
        """Closes the environments."""
        ...


class LocalSlots:
    """Slots in this process.

    Args:
        settings: What all slots share.
        count: Number of slots.
        baseline: Who acts in `play`, if anyone; episodes of a baseline run one after another.
    """

    def __init__(self, settings: SlotSettings, count: int, baseline: Baseline | None) -> None:
        self._slots = [EpisodeSlot(settings, baseline) for _ in range(count)]

    def exchange(self, commands: Mapping[int, Command]) -> dict[int, SlotReply]:
        """See `Slots.exchange`."""
        return {slot: self._slots[slot].answer(*command) for slot, command in commands.items()}

    def close(self) -> None:
        """See `Slots.close`."""
        for slot in self._slots:
            slot.close()


class WorkerSlots:
    """Slots in worker processes, which run at the same time.

    Args:
        settings: What all slots share.
        count: Number of slots; slot i lives in process `i % workers`.
        workers: Number of processes.
        baseline: Name of the baseline that acts in `play`, if any.
        timeout: See `WORKER_TIMEOUT`.

    Attributes:
        timeout: As given; may be changed between commands.
    """

    def __init__(
        self,
        settings: SlotSettings,
        count: int,
        workers: int,
        baseline: str | None = None,
        timeout: float = WORKER_TIMEOUT,
    ) -> None:
        self.timeout = timeout
        self._workers = [WorkerProcess(settings, baseline) for _ in range(min(workers, count))]

    def exchange(self, commands: Mapping[int, Command]) -> dict[int, SlotReply]:
        """See `Slots.exchange`.

        Raises:
            WorkerFault: If anything but the environment failed in a process.
        """
        replies: dict[int, SlotReply] = {}
        waiting: dict[Connection, tuple[WorkerProcess, list[int]]] = {}
        for index, worker in enumerate(self._workers):
            batch = {slot: commands[slot] for slot in sorted(commands) if slot % len(self._workers) == index}
            if batch and worker.send(batch):
                waiting[worker.connection] = (worker, list(batch))
            elif batch:
                replies |= self._bury(worker, list(batch), "")
        while waiting:
            ready = wait(list(waiting), self.timeout)
            for connection in ready or list(waiting):
                worker, unanswered = waiting[connection]  # type: ignore[index]
                answer = worker.receive() if ready else None
                if answer is None:
                    reason = "" if ready else f", stopped after {self.timeout:g} s without an answer"
                    replies |= self._bury(worker, unanswered, reason)
                    unanswered.clear()
                else:
                    slot, message = answer
                    if "fault" in message:
                        raise WorkerFault(f"worker process: {message['fault']}")
                    unanswered.remove(slot)
                    replies[slot] = SlotReply.from_plain(message)
                if not unanswered:
                    del waiting[connection]  # type: ignore[arg-type]
        return replies

    def close(self) -> None:
        """See `Slots.close`."""
        for worker in self._workers:
            worker.stop()

    def _bury(self, worker: WorkerProcess, unanswered: list[int], reason: str) -> dict[int, SlotReply]:
        """Replies of a dead process's slots; a new process takes its place when it is next needed."""
        code = worker.kill()
        crash = f"worker process ended with exit code {code}{reason}"
        logger.warning("%s; starting another", crash)
        first, *others = unanswered
        # Slots that have answered already learn of it at their next command: the new process does not know their episode.
        return {first: SlotReply(crash=crash), **{slot: SlotReply(lost=True) for slot in others}}


class WorkerProcess:
    """A process with slots, started when it is first spoken to and again after it died."""

    def __init__(self, settings: SlotSettings, baseline: str | None) -> None:
        self._arguments = (asdict(settings), asdict(find_backend(settings.env)), baseline)
        self._process: Any = None
        self.connection: Connection

    def send(self, batch: Mapping[int, Command]) -> bool:
        """Hands over commands by slot; False if the process has died."""
        if self._process is None:
            # All commands of an exchange go in one message, which the process reads before it answers any: neither side
            # can fill a pipe that the other is not reading.
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self._process = context.Process(target=serve_slots, args=(theirs, *self._arguments), daemon=True)
            self._process.start()
            theirs.close()  # or the end of the process would not end the pipe
        try:
            self.connection.send(dict(batch))
        except OSError:
            return False
        return True

    def receive(self) -> tuple[int, dict[str, Any]] | None:
        """The next answer as (slot, message); None if the process has died."""
        try:
            message: tuple[int, dict[str, Any]] | None = self.connection.recv()
            return message
        except (EOFError, OSError):
            return None

    def kill(self) -> int | None:
        """Ends the process at once; returns its exit code, which is negative for a signal."""
        process, self._process = self._process, None
        self.connection.close()
        process.join(0.5)  # a process that died by itself has an exit code of its own
        process.kill()
        process.join()
        exit_code: int | None = process.exitcode
        return exit_code

    def stop(self, patience: float = 10.0) -> None:
        """Lets the process close its environments, within `patience` seconds."""
        if self._process is None:
            return
        with suppress(OSError):
            self.connection.send(None)
        self.connection.close()
        self._process.join(patience)
        self._process.kill()
        self._process.join()
        self._process = None


def serve_slots(
    connection: Connection, settings: dict[str, Any], backend: dict[str, Any], baseline: str | None
) -> None:
    """What a worker process does: answers commands until None comes or the evaluating process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the evaluating process decides
    shared = SlotSettings(**settings)
    ENVIRONMENTS[shared.env] = Backend(**backend)  # which may have been registered at run time
    slots: dict[int, EpisodeSlot] = {}
    with suppress(EOFError, ConnectionError):
        while (batch := connection.recv()) is not None:
            for slot, command in batch.items():
                if slot not in slots:
                    slots[slot] = EpisodeSlot(shared, BASELINES[baseline]() if baseline else None)
                try:
                    message = slots[slot].answer(*command).to_plain()
                except Exception as error:
                    logger.exception("slot %d", slot)
                    message = {"fault": f"{type(error).__name__}: {error}"}
                connection.send((slot, message))
    for held in slots.values():
        held.close()
