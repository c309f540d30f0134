"""Processes that belong together: they write logs, the death of one is reported, and none outlives the one that started them.

Each runs in a process group of its own, which ends as a whole. A small guard process (`process_guard`) ends them where this
one is killed, and holds the folder's lock until they have gone, so that a restart cannot meet them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from . import process_guard
from .process_guard import end_groups, send

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
LOG_LINES = 25
"""Last lines of a dead process's log that are reported."""


class ProcessDied(RuntimeError):
    """A process ended that should not have."""


@dataclass(frozen=True)
class Child:
    """One process.

    Attributes:
        name: What it is called in messages.
        process: It.
        log: File of its output, to which earlier ones of that name have written as well.
        log_start: Where its own output begins.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def succeeded(self) -> bool:
        return self.process.poll() == 0

    def report(self) -> str:
        """How it ended, and the last lines that it wrote."""
        status = self.process.poll()
        how = f"exit status {status}" if status is None or status >= 0 else f"signal {signal.Signals(-status).name}"
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            lines = file.read()[-100_000:].decode(errors="replace").splitlines()[-LOG_LINES:]
        said = "\n".join(f"    {line}" for line in lines) or "    (nothing)"
        return f"{self.name}: the process ended ({how}). The end of {self.log}:\n{said}"


class ChildProcesses:
    """Context manager: starts processes, and on leaving ends those that still run, the last one first.

    Args:
        folder: Of logs and lock.
        grace_s: Seconds between SIGTERM and SIGKILL.
        wait_s: Seconds to wait until another one with this folder has ended; None: not at all.

    Raises:
        ValueError: On entering, if another one works with this folder.
    """

    def __init__(self, folder: Path, *, grace_s: float = 30.0, wait_s: float = 60.0) -> None:
        self.folder, self.grace_s, self.wait_s = folder, grace_s, wait_s
        self.children: list[Child] = []
        self._lock: IO[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ChildProcesses:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / ".lock").open("wb")
        self._take_lock(self._lock)
        self._guard = subprocess.Popen(
            [sys.executable, process_guard.__file__, str(self.grace_s)],
            stdin=subprocess.PIPE,
            env=environment(),
            start_new_session=True,  # it must not get the Ctrl-C of the terminal
            pass_fds=(self._lock.fileno(),),  # a copy of the file keeps the lock
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for child in reversed(self.children):
                self.stop(child)
        finally:
            assert self._guard is not None
            assert self._lock is not None
            self._guard.communicate()  # ends its input, and waits for it
            self._lock.close()

    def start(self, name: str, command: Sequence[str]) -> Child:
        """Starts a process whose output goes to `<name>.log` in the folder."""
        path = self.folder / f"{name}.log"
        with path.open("ab") as log:
            start = log.tell()
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                start_new_session=True,
                preexec_fn=self._tell_guard,  # by itself, before it is anything: this process may be killed at any moment
            )
        child = Child(name, process, path, start)
        self.children.append(child)
        logger.info("started %s, process %d, log %s", name, process.pid, path)
        return child

    def stop(self, child: Child) -> None:
        """Ends a process and what it started: SIGTERM, after the grace SIGKILL."""
        group = child.process.pid
        if child.running:
            send(group, signal.SIGTERM)
            try:
                child.process.wait(self.grace_s)
            except subprocess.TimeoutExpired:
                logger.warning("%s: still running %g s after SIGTERM; killed", child.name, self.grace_s)
                send(group, signal.SIGKILL)
                child.process.wait()
        end_groups([group], 1.0)  # what it may have left
        self._tell_guard("-", group)
        self.children.remove(child)

    def _tell_guard(self, sign: str = "+", group: int | None = None) -> None:
        """Tells the guard of a process group, by default that of the caller."""
        assert self._guard is not None
        assert self._guard.stdin is not None
        try:
            os.write(self._guard.stdin.fileno(), f"{sign}{group or os.getpid()}\n".encode())
        except BrokenPipeError:
            logger.warning("the guard process has gone; should this process be killed, its children will go on")

    def _take_lock(self, file: IO[bytes]) -> None:
        until, told = time.monotonic() + self.wait_s, False
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    file.close()
                    raise ValueError(
                        f"{self.folder}: in use by the processes of another command; wait for it, or stop it"
                    ) from None
            if not told:
                logger.info("%s: waiting for the processes of an earlier command to end", self.folder)
                told = True
            time.sleep(0.1)


def environment() -> dict[str, str]:
    """For a child: this process's, and in a clone of the repository its folder on the module path, wherever it is run."""
    if not (ROOT / "pyproject.toml").is_file():
        return dict(os.environ)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
