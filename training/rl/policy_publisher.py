"""Hands finished policies to whoever serves them: a folder per version, and a file that names the newest one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from syvla.sealed_folders import remove_folder
from syvla.serving.rl.published_policies import (
    ASIDE,
    DamagedPolicy,
    point_latest,
    publish_policy,
    read_latest,
    read_published,
)

logger = logging.getLogger(__name__)


class PolicyPublisher(Protocol):
    """Where policies go.

    Attributes:
        left: Numbers of policies that the run has left by going back to an older one; they are the first to be removed.
    """

    left: set[int]

    def publish(self, version: int, policy_version: str, save: Callable[[Path], None]) -> None:
        """Make a policy available; doing it again with the same version and hash changes nothing.

        Args:
            version: Number, rising from 0.
            policy_version: Hash of the weights.
            save: Writes a checkpoint into a folder.
        """
        ...

    def go_back(self, version: int, policy_version: str) -> Path:
        """Make an older policy the one to serve again; returns its folder."""
        ...


class FolderPublisher:
    """Publishes into `root/v0000`, `root/v0001`, ... and points `root/LATEST.json` at the newest.

    A folder appears under its name when it is whole, and `LATEST.json` names it only then: a reader never sees half a
    policy. See `syvla.serving.rl.published_policies`, which reads them.

    Args:
        root: Folder; on a disk that the server sees.
        keep: Versions that are kept, the newest ones.
    """

    def __init__(self, root: str | Path, keep: int = 3) -> None:
        self.root, self.keep = Path(root), keep
        self.left: set[int] = set()

    def publish(self, version: int, policy_version: str, save: Callable[[Path], None]) -> None:
        if self._published(version, policy_version):
            return
        policy = publish_policy(self.root, version, policy_version, save)
        point_latest(self.root, policy)
        folders = sorted(self.root.glob("v[0-9]*"))
        left = {f"v{number:04d}" for number in self.left}
        kept = [folder for folder in folders if folder.name not in left][-self.keep :]
        for old in folders:
            if old not in kept and old != policy.folder:
                remove_folder(old, self.root / ASIDE)
        shutil.rmtree(self.root / ASIDE, ignore_errors=True)

    def go_back(self, version: int, policy_version: str) -> Path:
        """See [`PolicyPublisher`].

        Raises:
            DamagedPolicy: It is not there, not whole, or another one.
        """
        policy = read_published(self.root, f"v{version:04d}")
        policy.verify()
        if policy.policy_version != policy_version:
            raise DamagedPolicy(f"{policy.folder}: holds {policy.policy_version}, expected {policy_version}")
        point_latest(self.root, policy)
        return policy.folder

    def _published(self, version: int, policy_version: str) -> bool:
        try:
            known = read_latest(self.root)
            if known is None or (known.version, known.policy_version) != (version, policy_version):
                return False
            known.verify()
        except DamagedPolicy as error:
            logger.warning("%s", error)
            return False
        return True

    def latest(self) -> dict[str, Any] | None:
        """Contents of `LATEST.json`, None before the first policy."""
        policy = read_latest(self.root)
        return None if policy is None else policy.facts
