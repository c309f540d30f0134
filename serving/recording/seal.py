"""Seals a rollout: a LeRobot data set of one episode in a folder of its own, whole or absent.

The episode is written aside; `seal.json`, with size and SHA-256 of every file, is written last; then the folder gets its
name in one step. Only the episode's facts (`rollout_format.facts_path`) change afterwards, when somebody labels it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from syvla.durable_files import sha256_of

from .format import EpisodeFacts, facts_path

SEAL = "seal.json"


def seal_folder(folder: Path, target: Path, facts: EpisodeFacts) -> None:
    """Seals the data set in `folder` and renames it to `target`."""
    from syvla.processing.robot_data.lerobot_format import write_json

    known = facts_path(folder, 0)
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != known:
            sync(path)
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, sha256_of(path)]
    write_json(folder / SEAL, {"facts": asdict(facts), "files": files})
    for part in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync(part)
    folder.rename(target)
    sync(target.parent)


def seal_problem(folder: Path) -> str | None:
    """What is wrong with a sealed rollout, None if nothing is. Its label is not looked at."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        for name, (size, digest) in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name}: expected {size} bytes, got {path.stat().st_size}"
            if sha256_of(path) != digest:
                return f"{name}: its SHA-256 is another one"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{SEAL} cannot be read ({type(error).__name__})"
    return None


def sealed_facts(folder: Path) -> EpisodeFacts:
    """The facts as they were when the rollout was sealed, before any label."""
    return EpisodeFacts(**json.loads((folder / SEAL).read_text(encoding="utf-8"))["facts"])


def sync(path: Path) -> None:
    """Brings a file's or folder's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
