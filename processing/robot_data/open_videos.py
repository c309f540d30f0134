"""Open video files of a process: one budget over all datasets, from the process's own limit of open files."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .video import TooManyOpenFilesError, VideoReader, open_file_limit

logger = logging.getLogger(__name__)

MOST_OPEN = 128
"""Open videos of a process where its limit would allow more: each also holds a decoder, some ten megabytes of memory."""

_SHARE = 0.5  # of the files that the process may still open; the rest is for everything else it does


_Key = tuple[str, tuple[int, int] | None, Any]
"""Path, expected size, and what tells the file from one that takes its place."""


class OpenVideos:
    """Open videos by path; the one unused for longest is closed first.

    Safe to hold in an object that is pickled to a worker or forked into one: each process opens its own files. Threads may
    share one.

    Args:
        max_open: Largest number of open videos; None takes a share of the files that the process may still open when it
            opens its first video, at most `MOST_OPEN`.
    """

    def __init__(self, max_open: int | None = None):
        if max_open is not None and max_open < 1:
            raise ValueError(f"max_open: expected at least 1, got {max_open}")
        self._given = max_open
        self._max_open: int | None = None
        self._begin()

    def __len__(self) -> int:
        return len(self._readers)

    @property
    def max_open(self) -> int:
        if self._max_open is None:
            self._max_open = self._given or _budget()
            logger.debug("at most %d videos are open at once", self._max_open)
        return self._max_open

    def read(self, path: Path | str, size: tuple[int, int] | None, time: float, tolerance: float) -> np.ndarray:
        """The frame that a video shows at a time, see `VideoReader.read`; uint8 (height, width, 3).

        Raises:
            VideoError: The video cannot be read.
        """
        if self._process != os.getpid():  # a fork shares file positions with its parent: never use the parent's handles
            self._begin()
        with self._lock:
            reader, in_use = self._take((str(path), size, _state(path)))
            in_use.acquire()
        try:
            return reader.read(time, tolerance)
        finally:
            in_use.release()

    def close(self) -> None:
        with self._lock:
            for reader, in_use in self._readers.values():
                with in_use:
                    reader.close()
            self._readers.clear()

    def _begin(self) -> None:
        self._readers: OrderedDict[_Key, tuple[VideoReader, threading.Lock]] = OrderedDict()
        self._lock, self._process = threading.Lock(), os.getpid()
        self._max_open = None

    def _take(self, key: _Key) -> tuple[VideoReader, threading.Lock]:
        if key not in self._readers:
            while len(self._readers) >= self.max_open and self._close_oldest():
                pass
            self._readers[key] = self._open(key), threading.Lock()
        self._readers.move_to_end(key)
        return self._readers[key]

    def _open(self, key: _Key) -> VideoReader:
        while True:
            try:
                return VideoReader(*key[:2])
            except TooManyOpenFilesError:  # the process has come to hold more files of other kinds: make do with fewer
                if not self._close_oldest():
                    raise
                self._max_open = max(1, len(self._readers))

    def _close_oldest(self) -> bool:
        """Closes the video unused for longest that no thread reads; False where there is none."""
        for key, (reader, in_use) in self._readers.items():
            if in_use.acquire(blocking=False):
                del self._readers[key]
                reader.close()
                return True
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {"_given": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_given"])  # type: ignore[misc]


OPEN_VIDEOS = OpenVideos()
"""Those of this process, which all datasets share."""


def _budget() -> int:
    limit = open_file_limit()
    if limit is None:
        return MOST_OPEN
    held = 32  # about what Python and torch hold
    with suppress(OSError):
        held = len(os.listdir("/proc/self/fd"))
    return int(min(MOST_OPEN, max(1, _SHARE * (limit - held))))


def _state(path: Path | str) -> tuple[int, int] | None:
    with suppress(OSError):
        status = os.stat(path)
        return status.st_mtime_ns, status.st_size
    return None
