"""What happened in a run of reinforcement learning, a line of JSON per event, each one on disk before it counts."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Journal:
    """Appends to `path`; from any thread.

    Args:
        path: The file. A last line that a crash cut off is removed.

    Attributes:
        events: What it held when it was opened.
        torn: Bytes of the line that was cut off.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = path.open("a+b")
        self._file.seek(0)
        self.events: list[dict[str, Any]] = []
        whole = 0
        for line in self._file:
            try:
                event = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                event = None
            if not isinstance(event, dict):
                break
            self.events.append(event)
            whole += len(line)
        self.torn = self._file.seek(0, os.SEEK_END) - whole
        if self.torn:
            self._file.truncate(whole)

    def write(self, event: str, **facts: Any) -> None:
        """Appends an event; on return it is on disk."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}) + "\n"
        with self._lock:
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with self._lock:
            self._file.close()
