"""The files of a distant folder as local ones, fetched when asked for; one state of each file for the whole run."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from syvla.durable_files import make_folder

from .file_cache import CacheEntry, FileCache
from .remote_folder import FileVersion, RemoteFolder

try:
    import fcntl
except ImportError:  # Windows, see `require_file_locks`
    fcntl = None  # type: ignore[assignment]


class StreamedFiles:
    """Files of a source, through a cache. Safe to pickle into a worker, to fork, and to share between threads.

    Args:
        source: Where they lie.
        cache: Where they are kept.
        state: What tells this state of the source from another, such as a commit.

    Attributes:
        planned: Whether a plan says which files are needed when. The cache then removes what is planned for no later time
            first, and a file's use says nothing of its future.
    """

    def __init__(self, source: RemoteFolder, cache: FileCache, state: str):
        self.source, self.cache, self.state = source, cache, state
        self.planned = False
        self._versions = VersionList(cache.folder / "versions" / f"{_digest(source.url, state)}.jsonl")

    @contextmanager
    def lease(self, name: str) -> Iterator[Path]:
        """A local copy of a file, which stays until the `with` block ends.

        Raises:
            StreamingError: It cannot be fetched.
            CacheError: It does not fit into the cache, or the disk is full.
        """
        version, known = self._version(name)
        with self.cache.lease(
            self._entry(name, version), lambda file: self._fetch(name, version, known, file), touch=not self.planned
        ) as path:
            yield path

    def fetch_ahead(self, name: str) -> None:
        """Makes sure that a file is there, and the last to be removed."""
        version, known = self._version(name)
        with self.cache.lease(self._entry(name, version), lambda file: self._fetch(name, version, known, file)):
            pass

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._version(name)[0].size

    def _version(self, name: str) -> tuple[FileVersion, bool]:
        """The version of a file in this run, and whether it was known before."""
        if (version := self._versions.get(name)) is not None:
            return version, True
        return self._versions.put(name, self.source.version(name)), False

    def _fetch(self, name: str, version: FileVersion, known: bool, file: Any) -> None:
        if known and not self.source.immutable:
            self.source.require_version(name, version)
        self.source.download(name, version, file)

    def _entry(self, name: str, version: FileVersion) -> CacheEntry:
        digest = _digest(self.source.url, self.state, name, str(version.size), version.tag)
        return CacheEntry(f"{digest}-{PurePosixPath(name).name}", version.size, name)


class VersionList:
    """Versions of the files of a source as the run first saw them, which all its processes agree on.

    A file on disk holds them. It begins anew when nobody uses it, so that a new run takes the source as it then is.

    Args:
        path: Of the file.
    """

    _known: dict[str, FileVersion]
    _process: int
    _threads: threading.Lock

    def __init__(self, path: Path):
        self._path = path
        self._begin()
        if self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            os.ftruncate(self._descriptor, 0)
        self._lock(fcntl.LOCK_SH)

    def get(self, name: str) -> FileVersion | None:
        """The version of a file; None where no process has asked for it yet."""
        with self._own_lock():
            if name not in self._known:
                self._read()
            return self._known.get(name)

    def put(self, name: str, version: FileVersion) -> FileVersion:
        """Notes a version; returns the one that another process noted before, where one has."""
        line = json.dumps({"name": name, **asdict(version)}) + "\n"
        os.write(self._descriptor, line.encode())  # appended in one piece
        with self._own_lock():
            self._read()
            return self._known[name]

    def _read(self) -> None:
        """Takes up whole lines that were added; of several for one file the first holds."""
        status = os.fstat(self._descriptor)
        data = os.pread(self._descriptor, max(0, status.st_size - self._read_bytes), self._read_bytes)
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            entry = json.loads(line)
            self._known.setdefault(entry.pop("name"), FileVersion(**entry))
        self._read_bytes += len(whole)

    def _own_lock(self) -> threading.Lock:
        """Of the threads of this process: a lock that was held when the process was forked is never let go in it."""
        if self._process != os.getpid():
            self._process, self._threads = os.getpid(), threading.Lock()
            self._known, self._read_bytes = {}, 0
        return self._threads

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._descriptor, kind)
        except BlockingIOError:
            return False
        return True

    def _begin(self) -> None:
        make_folder(self._path.parent)
        self._descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o666)
        self._known, self._read_bytes = {}, 0
        self._process, self._threads = os.getpid(), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_path"])  # type: ignore[misc]

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
