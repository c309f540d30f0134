"""Git-LFS pointers: small text files that stand where the data would be after `git lfs pull`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_BEGINNING = b"version https://git-lfs.github.com/spec/"
_LARGEST = 1024  # bytes; the specification's limit of a pointer


def is_lfs_pointer(path: Path | str) -> bool:
    """Whether a file is a pointer of Git LFS in place of its contents."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING and len(file.read(_LARGEST)) < _LARGEST
    except OSError:
        return False


def reading_problem(path: Path | str, otherwise: str) -> str:
    """What to say of a file that cannot be read: how to get its contents if it is a pointer, else `otherwise`."""
    if is_lfs_pointer(path):
        return f"is a Git LFS pointer, not the file itself; run `git lfs pull` in {Path(path).parent}"
    return otherwise


def require_contents(paths: Iterable[Path | str]) -> None:
    """Makes sure that none of the files is a pointer.

    Raises:
        ValueError: Some are; names them.
    """
    pointers = [str(path) for path in paths if is_lfs_pointer(path)]
    if pointers:
        shown = ", ".join(pointers[:3]) + (f" and {len(pointers) - 3} more" if len(pointers) > 3 else "")
        raise ValueError(
            f"{shown}: Git LFS pointers, not the files themselves; run `git lfs pull` in {Path(pointers[0]).parent}"
        )
