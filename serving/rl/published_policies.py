"""Policies that a training run publishes: a folder per version, and a file that names the one to serve. No torch.

`policies/v0003/` holds a checkpoint and `POLICY.json` with size and SHA-256 of each of its files; `policies/LATEST.json`
names the version to serve. Both appear by renaming, and nothing is loaded before its hashes are right, so half a policy is
never served.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syvla.durable_files import make_folder, write_json
from syvla.sealed_folders import folder_problems, publish_folder, seal_folder, undo_replacement

LATEST = "LATEST.json"
POLICY_FILE = "POLICY.json"
ASIDE = ".publishing"
"""Folder in which a policy is written before it gets its name."""
_FOLDER = re.compile(r"v\d{4,9}")


class DamagedPolicy(ValueError):
    """A published policy that is not whole; the message says what is wrong with it."""


@dataclass(frozen=True)
class PublishedPolicy:
    """A published version.

    Attributes:
        version: Number, from 0.
        policy_version: Hash of the weights by `syvla.serving.policies.loading.weights_digest`, which rollouts carry.
        folder: Folder of the checkpoint.
    """

    version: int
    policy_version: str
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def facts(self) -> dict[str, Any]:
        """Contents of `LATEST.json`; `POLICY.json` holds the list of files besides."""
        return {"version": self.version, "policy_version": self.policy_version, "path": self.folder.name}

    def verify(self) -> None:
        """Raises DamagedPolicy unless every file is there with its hash."""
        if problems := folder_problems(self.folder, POLICY_FILE):
            raise DamagedPolicy(
                f"{self.folder}: {'; '.join(problems[:3])}; it is half written or damaged, publish the policy again"
            )
        files = json.loads((self.folder / POLICY_FILE).read_text(encoding="utf-8"))["files"]
        if not any(name.endswith(".safetensors") for name in files):
            raise DamagedPolicy(f"{self.folder}: its facts name no weights; publish it again")


def publish_policy(root: Path, version: int, policy_version: str, save: Callable[[Path], None]) -> PublishedPolicy:
    """Makes a version available, whole; `point_latest` then has it served. What a killed publication left is cleared away.

    Args:
        root: Folder of the policies.
        version, policy_version: See [`PublishedPolicy`].
        save: Writes a checkpoint into a folder.
    """
    aside = root / ASIDE
    undo_replacement(aside, root)
    shutil.rmtree(aside, ignore_errors=True)
    policy = PublishedPolicy(version, policy_version, root / f"v{version:04d}")
    make_folder(aside / policy.name)
    save(aside / policy.name)
    seal_folder(aside / policy.name, POLICY_FILE, policy.facts)
    publish_folder(aside / policy.name, policy.folder)
    aside.rmdir()
    return policy


def read_latest(root: Path) -> PublishedPolicy | None:
    """The policy that `LATEST.json` names; None before the first one.

    Raises:
        DamagedPolicy: The file is not one, or the folder that it names holds another policy.
    """
    if not (root / LATEST).is_file():
        return None
    latest = _read(root, root / LATEST)
    found = read_published(root, latest.name)
    if found != latest:
        raise DamagedPolicy(
            f"{root / LATEST}: names {latest.policy_version}, {latest.folder} holds {found.policy_version}"
        )
    return found


def read_published(root: Path, name: str) -> PublishedPolicy:
    """The version in the folder of that name.

    Raises:
        DamagedPolicy: `name` is no folder of a version below `root`, or it has no facts.
    """
    if not _FOLDER.fullmatch(name):
        raise DamagedPolicy(f"version: expected the name of a folder below {root}, such as v0003, got {name[:60]!r}")
    if not (root / name / POLICY_FILE).is_file():
        raise DamagedPolicy(f"version: {root} has no whole policy {name}; it has {version_names(root)}")
    return _read(root, root / name / POLICY_FILE)


def version_names(root: Path) -> list[str]:
    """Names of the versions that are there, oldest first."""
    return sorted(path.parent.name for path in root.glob(f"v*/{POLICY_FILE}") if _FOLDER.fullmatch(path.parent.name))


def newest_whole(root: Path) -> PublishedPolicy | None:
    """The newest version whose hashes are right, None without one."""
    for name in reversed(version_names(root)):
        try:
            policy = read_published(root, name)
            policy.verify()
        except DamagedPolicy:
            continue
        return policy
    return None


def point_latest(root: Path, policy: PublishedPolicy) -> None:
    """Names `policy` in `LATEST.json`, in one step."""
    write_json(root / LATEST, policy.facts)


def _read(root: Path, path: Path) -> PublishedPolicy:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version, digest, name = (facts[key] for key in ("version", "policy_version", "path"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedPolicy(f"{path}: cannot be read ({type(error).__name__}: {error}); publish again") from None
    right = isinstance(version, int) and isinstance(digest, str) and isinstance(name, str)
    if not right or not _FOLDER.fullmatch(name):
        raise DamagedPolicy(f"{path}: expected version, policy_version and path of a published policy")
    return PublishedPolicy(version, digest, root / name)
