"""Files that are whole on disk or absent. Standard library only: every package uses this module.

A file is written under a temporary name beside its place, brought to the disk and renamed. A process may be killed, the power
may fail or the disk may be full at any moment: a reader then finds the former contents or the new ones. An error while
writing is raised, and the former contents stay. Folders: `sealed_folders`.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where temporary files of killed processes stay
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_UNSUPPORTED_FOLDER = _UNSUPPORTED | {errno.EACCES, errno.EBADF, errno.EISDIR}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Brings a file's contents, or a folder's list of names, to the disk.

    A file system that has no such operation (some network file systems have none for folders) is taken as it is.

    Raises:
        OSError: The contents did not reach the disk.
    """
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (_UNSUPPORTED_FOLDER if folder else _UNSUPPORTED):
            raise
        logger.debug("%s: the file system cannot sync it (%s)", path, error)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write(temporary path)`, then puts the file in place in one step. Missing folders are made.

    Any number of processes may write the same file: the last one wins. What a killed one left is removed.
    """
    make_folder(path.parent)
    _remove_leftovers(path)
    temporary, descriptor = _claim_temporary(path)
    try:
        write(temporary)
        replace_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def replace_durably(source: Path, target: Path) -> None:
    """Renames a finished file over `target`, in the same file system, after its contents have reached the disk."""
    make_folder(target.parent)
    sync(source)
    os.replace(source, target)
    sync(target.parent)


def write_bytes(path: Path, data: bytes) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, *, allow_nan: bool = False, default: Callable[[Any], Any] | None = None) -> None:
    """Writes JSON as LeRobot lays it out.

    Raises:
        ValueError: There are NaN or infinite numbers, and `allow_nan` is not set.
    """
    write_text(path, json.dumps(value, indent=4, ensure_ascii=False, allow_nan=allow_nan, default=default) + "\n")


def append_json_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Appends a line of JSON per entry; on return they are on disk. A last line that a crash cut off is ended first."""
    lines = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    new = not path.exists()
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
            lines = b"\n" + lines
        file.write(lines)
    sync(path)
    if new:
        sync(path.parent)


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(JSON objects of a file's lines, number of lines that are none, as a crash leaves them); none without a file."""
    entries, torn = [], 0
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            entries.append(entry)
        else:
            torn += bool(line)
    return entries, torn


def make_folder(path: Path) -> None:
    """Makes a folder and its missing parents, each of them on disk."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def _claim_temporary(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, locked as long as its descriptor is open: a killed writer holds no lock."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if fcntl is None or (_locked(descriptor, without=True) and os.fstat(descriptor).st_nlink):
            return temporary, descriptor
        os.close(descriptor)  # another writer took it for a leftover before it was locked


def _remove_leftovers(path: Path) -> None:
    """Removes temporary files of `path` whose writers were killed."""
    if fcntl is None:
        return
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            descriptor = os.open(leftover, os.O_RDWR)
        except OSError:  # finished meanwhile
            continue
        if _locked(descriptor, without=False):
            leftover.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(descriptor: int, *, without: bool) -> bool:
    """Whether the file could be locked; `without` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return without
    return True
