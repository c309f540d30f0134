"""Ends what a dead process has left running: a program of its own, started by `ChildProcesses`.

Reads `+N` and `-N` from standard input: process group N has been started, or has ended. When the input ends, because the
other side is done or was killed, the groups that are left get SIGTERM, and SIGKILL after `SECONDS`. Standard library only.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence


def end_groups(groups: Iterable[int], seconds: float) -> None:
    """Ends process groups: SIGTERM, and SIGKILL to those that are still there after `seconds`."""
    left = set(groups)
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 1.0)):
        left = {group for group in left if send(group, number)}
        until = time.monotonic() + patience
        while left and time.monotonic() < until:
            time.sleep(0.05)
            left = {group for group in left if send(group, 0)}


def send(group: int, number: int) -> bool:
    """Sends a signal to a process group; 0 sends none. Returns whether there is such a group."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter: only zombies are left, on macOS
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Waits for the end of the standard input; returns the exit status."""
    (seconds,) = sys.argv[1:] if argv is None else argv
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        (groups.add if line[0] == "+" else groups.discard)(group)
    end_groups(groups, float(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
