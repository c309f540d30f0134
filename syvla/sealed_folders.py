"""Folders that are whole on disk or absent. Standard library only: every package uses this module.

A folder is written aside, sealed with a list of its files, brought to the disk and renamed to its place. A reader that
checks the list never takes half a folder for a whole one, whether a kill, a full disk or an interrupted copy left it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .durable_files import make_folder, sha256_of, sync, write_json

_REPLACED = "replaced-"


def seal_folder(
    folder: Path,
    seal: str,
    facts: Mapping[str, Any] | None = None,
    *,
    hashes: bool = True,
    changing: Iterable[Path] = (),
) -> None:
    """Brings a folder to the disk and then writes `seal` into it: the facts, and every file's size and SHA-256.

    Args:
        folder: The folder.
        seal: Name of the JSON file.
        facts: Further entries of it.
        hashes: Whether to hash the files; sizes alone find what was cut short, and cost no reading.
        changing: Files that may change later and are not listed.
    """
    (folder / seal).unlink(missing_ok=True)
    paths = sorted(folder.rglob("*"))
    files = [path for path in paths if path.is_file() and path not in {*changing}]
    for path in (*paths, folder):
        sync(path)
    sizes = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, *([sha256_of(path)] if hashes else [])]
        for path in files
    }
    write_json(folder / seal, {**(facts or {}), "files": sizes})


def folder_problems(folder: Path, seal: str) -> list[str]:
    """What is wrong with a sealed folder, a text per file; empty if it is whole. Files beyond the list do not count."""
    if not folder.is_dir():
        return ["there is no such folder"]
    if not (folder / seal).is_file():
        return [f"{seal} is missing, which is written last: saving was interrupted, or another program wrote it"]
    try:
        files = json.loads((folder / seal).read_text(encoding="utf-8"))["files"]
        listed = {name: _size_and_hash(entry) for name, entry in files.items()}
        problems = {name: _size_problem(folder, name, size) for name, (size, _) in listed.items()}
        for name, (_, digest) in listed.items():
            if digest is not None and problems[name] is None and (found := sha256_of(folder / name)) != digest:
                problems[name] = f"{name}: SHA-256 {found[:12]}..., expected {digest[:12]}...: its contents changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{seal} cannot be read ({type(error).__name__}: {error})"]
    return [problem for problem in problems.values() if problem is not None]


def publish_folder(folder: Path, target: Path) -> None:
    """Renames a sealed folder to its place; one that is there gives way, beside `folder`. See `undo_replacement`."""
    make_folder(target.parent)
    old = folder.with_name(_REPLACED + target.name)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    folder.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def undo_replacement(aside: Path, parent: Path) -> None:
    """Puts folders back that a killed `publish_folder(aside / NAME, parent / NAME)` had moved away but not replaced."""
    for old in aside.glob(f"{_REPLACED}*"):
        target = parent / old.name.removeprefix(_REPLACED)
        if not target.exists():
            with suppress(FileNotFoundError):  # another process was quicker
                old.rename(target)


def remove_folder(folder: Path, aside: Path) -> None:
    """Deletes a folder by way of the folder `aside`, so that a kill leaves no half of it under its name."""
    make_folder(aside)
    gone = aside / f"deleted-{folder.name}"
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _size_and_hash(entry: Any) -> tuple[int, str | None]:
    size, digest = (entry, None) if isinstance(entry, int) else (entry[0], entry[1] if len(entry) > 1 else None)
    if type(size) is not int or not isinstance(digest, str | None):
        raise ValueError(f"{entry!r:.60} is no size with a SHA-256")
    return size, digest


def _size_problem(folder: Path, name: str, size: int) -> str | None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return f"{name}: lies outside of the folder"
    if not path.is_file():
        return f"{name}: missing, expected {size} bytes"
    if (found := path.stat().st_size) != size:
        return f"{name}: {found} bytes, expected {size} bytes"
    return None
