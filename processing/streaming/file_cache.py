"""A bounded cache of files on disk that processes share.

The folder holds whole files in `files/` and downloads under way in `partial/`. A file is renamed into `files/` when its last
byte is on the disk, so no reader ever sees part of one. A reader holds a shared lock on the file that it reads; a file is
removed under an exclusive lock alone, so none is removed while it is read. Room is reserved on the disk before a download
begins: what is stored and what is reserved never exceed the bound together. Locks belong to open files, so a killed process
leaves none.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from syvla.durable_files import make_folder, replace_durably, write_json

try:
    import fcntl
except ImportError:  # Windows, see `require_file_locks`
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

WAIT_SECONDS = 600.0
"""How long a download waits for room while every file of the cache is in use."""

_SLACK = (
    0.05  # share of the bound that is freed beyond what is needed, so that files are listed once for many downloads
)


class CacheError(OSError):
    """The cache cannot hold what is asked of it; the message names the setting and the fix."""


def require_file_locks() -> None:
    """Raises CacheError where the system has none."""
    if fcntl is None:
        raise CacheError("streaming needs file locks of POSIX, which this system lacks; download the dataset instead")


@dataclass(frozen=True)
class CacheEntry:
    """A file of the cache.

    Attributes:
        name: Of the file; another version of the same file has another name.
        size: Bytes.
        title: What messages call it.
    """

    name: str
    size: int
    title: str


class FileCache:
    """Whole files in a folder, never more than the bound together. Processes and threads may share the folder.

    Safe to pickle into a worker and to fork.

    Args:
        folder: Of the cache; it is made.
        limit: Bound in bytes.

    Raises:
        CacheError: Another process uses the folder with another bound, or the system has no file locks.
    """

    def __init__(self, folder: str | Path, limit: int):
        require_file_locks()
        self.folder, self.limit = Path(folder), int(limit)
        self._files, self._partial = self.folder / "files", self.folder / "partial"
        try:
            for path in (self._files, self._partial):
                make_folder(path)
        except OSError as error:
            raise CacheError(f"cache_dir: {self.folder} cannot be made ({error}); choose another folder") from error
        self._join()

    @contextmanager
    def lease(self, entry: CacheEntry, fetch: Callable[[BinaryIO], None], *, touch: bool = True) -> Iterator[Path]:
        """The file, which stays until the `with` block ends; fetched first where it is absent.

        Args:
            entry: Which file.
            fetch: Writes all of its bytes into an open file, or raises.
            touch: Whether this use makes the file the last to be removed.

        Raises:
            CacheError: It does not fit into the cache, or the disk is full.
        """
        descriptor = self._hold(entry, fetch, touch)
        try:
            yield self._files / entry.name
        finally:
            _release(descriptor)

    def stored_bytes(self) -> int:
        """Bytes of all files, and of the room that downloads under way have reserved."""
        with self._locked():
            return self._listed_bytes()

    # -- one file ---------------------------------------------------------------------------------------------------

    def _hold(self, entry: CacheEntry, fetch: Callable[[BinaryIO], None], touch: bool) -> int:
        """Descriptor of the file, under a shared lock."""
        if entry.size > self.limit:
            raise CacheError(
                f"cache_gb: {entry.title} has {_gigabytes(entry.size)}, more than the whole cache of "
                f"{_gigabytes(self.limit)}; raise cache_gb to several files of this size"
            )
        while True:
            if (descriptor := self._held(entry)) is not None:
                if touch:
                    _touch(descriptor)
                return descriptor
            if (descriptor := self._fetched(entry, fetch)) is not None:
                return descriptor

    def _held(self, entry: CacheEntry) -> int | None:
        try:
            descriptor = os.open(self._files / entry.name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        if status.st_nlink and status.st_size == entry.size:
            return descriptor
        if status.st_nlink:
            logger.warning("%s: the cached copy has %d of %d bytes", entry.title, status.st_size, entry.size)
            (self._files / entry.name).unlink(missing_ok=True)
        _release(descriptor)
        return None

    def _fetched(self, entry: CacheEntry, fetch: Callable[[BinaryIO], None]) -> int | None:
        """Downloads the file unless another process has meanwhile; None: look again."""
        partial = self._partial / entry.name
        descriptor = os.open(partial, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # waits for another process that downloads the same file
            if not _is_at(descriptor, partial) or (self._files / entry.name).exists():
                if _is_at(descriptor, partial):
                    partial.unlink(missing_ok=True)
                _release(descriptor)
                return None
            self._reserve(descriptor, entry)
            try:
                with open(descriptor, "r+b", closefd=False) as file:
                    fetch(file)
                    file.flush()
                    if file.tell() != entry.size:
                        raise CacheError(f"{entry.title}: {file.tell()} of {entry.size} bytes arrived")
                replace_durably(partial, self._files / entry.name)
            except BaseException:
                partial.unlink(missing_ok=True)
                self._account(-entry.size)
                raise
            _touch(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except OSError as error:
            _release(descriptor)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full(entry) from error
            raise
        except BaseException:
            _release(descriptor)
            raise
        _release(descriptor)  # removed between two locks
        return None

    def _full(self, entry: CacheEntry) -> CacheError:
        return CacheError(
            f"cache_dir: the disk of {self.folder} is full: {entry.title} needs {_gigabytes(entry.size)}, and the cache may "
            f"take {_gigabytes(self.limit)}; lower cache_gb, free the disk, or name a folder on another disk as cache_dir"
        )

    # -- room -------------------------------------------------------------------------------------------------------

    def _reserve(self, descriptor: int, entry: CacheEntry) -> None:
        """Makes room for a file and takes it on the disk, so that a full disk is found before the download."""
        deadline, pause = time.monotonic() + WAIT_SECONDS, 0.02
        while True:
            with self._locked():
                used = self._usage()
                if used + entry.size > self.limit:
                    used = self._remove_oldest(self.limit - entry.size)
                if used + entry.size <= self.limit:
                    self._write_usage(used + entry.size)
                    try:
                        _allocate(descriptor, entry.size)
                    except OSError:
                        os.ftruncate(descriptor, 0)
                        self._write_usage(used)
                        raise
                    return
            if time.monotonic() > deadline:
                raise CacheError(
                    f"cache_gb: {entry.title} ({_gigabytes(entry.size)}) found no room for {WAIT_SECONDS:.0f} s, since every "
                    f"file of the {_gigabytes(self.limit)} is in use; raise cache_gb, or lower dataloader_num_workers"
                )
            time.sleep(pause)
            pause = min(0.5, pause * 2)

    def _remove_oldest(self, wanted: int) -> int:
        """Removes files that nobody uses, the one unused for longest first, until `wanted` bytes are left at most.

        Returns:
            Bytes that are left. Downloads that a killed process left are removed as well.
        """
        used = 0
        for path in self._partial.iterdir():
            if not self._remove(path):
                used += _size(path)
        found = []
        for item in os.scandir(self._files):
            with suppress(FileNotFoundError):
                status = item.stat()
                found.append((status.st_atime_ns, status.st_size, item.path))
                used += status.st_size
        slack = int(self.limit * _SLACK)
        for _, size, name in sorted(found):
            if used <= wanted and used - size < wanted - slack:
                break
            if self._remove(Path(name)):
                used -= size
        self._write_usage(used)
        return used

    def _remove(self, path: Path) -> bool:
        """Whether the file is gone: not where a process holds a lock on it."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                path.unlink(missing_ok=True)
            return True
        except BlockingIOError:
            return False
        finally:
            _release(descriptor)

    def _account(self, change: int) -> None:
        with self._locked():
            self._write_usage(max(0, self._usage() + change))

    def _usage(self) -> int:
        """Bytes in use, never fewer than there are: a killed download stays counted until files are listed next."""
        try:
            return int((self.folder / "usage").read_text())
        except (FileNotFoundError, ValueError):
            return self._listed_bytes()

    def _listed_bytes(self) -> int:
        sizes = {}  # by name: a download that ends meanwhile is met in both folders
        for folder in (self._partial, self._files):
            sizes.update({path.name: _size(path) for path in folder.iterdir()})
        return sum(sizes.values())

    def _write_usage(self, used: int) -> None:
        temporary = self.folder / "usage.tmp"  # under the lock; not synced: it may be lost, and is then counted again
        temporary.write_text(str(used))
        os.replace(temporary, self.folder / "usage")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            _release(descriptor)

    # -- who uses the folder ----------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Agrees on the bound with everyone who uses the folder, as long as this object lives."""
        path, record = self.folder / "users.lock", self.folder / "bound.json"
        self._users = _Held(os.open(path, os.O_CREAT | os.O_RDWR, 0o666))
        if self._users.lock(fcntl.LOCK_EX | fcntl.LOCK_NB):  # nobody else: the bound of an earlier run ends here
            write_json(record, {"bytes": self.limit})
            with self._locked():
                self._remove_oldest(self.limit + int(self.limit * _SLACK))
        self._users.lock(fcntl.LOCK_SH)
        found = json.loads(record.read_text(encoding="utf-8"))["bytes"]
        if found != self.limit:
            raise CacheError(
                f"cache_gb: {self.limit / 1e9:g} here, but {found / 1e9:g} of a run or dataset that is using {self.folder}; "
                "give both the same cache_gb, or each a cache_dir of its own"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["limit"])  # type: ignore[misc]


class _Held:
    """An open descriptor that is closed with its owner."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self.descriptor, kind)
        except BlockingIOError:
            return False
        return True

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)


def _release(descriptor: int) -> None:
    """Gives the lock up and closes the file: closing alone would leave the lock to a process forked meanwhile."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _touch(descriptor: int) -> None:
    """Notes the time of use; the time of modification tells open readers that the file is the same."""
    os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))


def _allocate(descriptor: int, size: int) -> None:
    os.ftruncate(descriptor, 0)
    if not size:
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.ftruncate(descriptor, size)  # a file system without reservation: a full disk is found while writing


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
