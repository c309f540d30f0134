"""One trainer per run: two would take each other's rollouts and publish over each other's policies."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from syvla.durable_files import make_folder, write_json

LOCK_FILE = ".training"
HOLDER_FILE = ".training.json"


@contextmanager
def only_trainer(run: Path) -> Iterator[None]:
    """Holds the run's folder. The operating system lets go of the lock when its process dies, however it dies.

    Args:
        run: The trainer's `output_dir`.

    Raises:
        ValueError: Another trainer works on the run.
    """
    from filelock import FileLock, Timeout

    make_folder(run)
    lock = FileLock(run / LOCK_FILE, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"output_dir: another trainer works on {run} ({_holder(run)}); stop it first, or choose another folder"
        ) from error
    try:
        write_json(run / HOLDER_FILE, {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})
        yield
    finally:
        (run / HOLDER_FILE).unlink(missing_ok=True)
        lock.release()


def _holder(run: Path) -> str:
    """Who holds the lock, in words."""
    try:
        facts = json.loads((run / HOLDER_FILE).read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["since"]))
        return f"process {facts['pid']} on {facts['host']} since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it did not say which process it is"
