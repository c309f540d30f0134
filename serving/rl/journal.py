"""What happened in a run of reinforcement learning, a line of JSON per event, each one on disk before it counts."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from syvla.durable_files import append_json_lines, make_folder, read_json_lines


class Journal:
    """Appends to `path`; from any thread.

    Args:
        path: The file.

    Attributes:
        events: What it held when it was opened.
        torn: Number of lines that crashes cut off; they are passed over.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self.path, self._lock = path, threading.Lock()
        self.events, self.torn = read_json_lines(path)

    def write(self, event: str, **facts: Any) -> None:
        """Appends an event; on return it is on disk."""
        with self._lock:
            append_json_lines(self.path, [{"time": round(time.time(), 3), "event": event, **facts}])
