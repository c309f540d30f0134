"""Hands finished policies to whoever serves them: a folder per version, and a file that names the newest one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from syvla.durable_files import sha256_of
from syvla.processing.robot_data.lerobot_format import write_json
from syvla.serving.recording.seal import sync
from syvla.serving.rl.published_policies import (
    FACTS,
    DamagedPolicy,
    PublishedPolicy,
    point_latest,
    read_latest,
)

logger = logging.getLogger(__name__)


class PolicyPublisher(Protocol):
    """Where policies go."""

    def publish(self, version: int, policy_version: str, save: Callable[[Path], None]) -> None:
        """Make a policy available; doing it again with the same version and hash changes nothing.

        Args:
            version: Number, rising from 0.
            policy_version: Hash of the weights.
            save: Writes a checkpoint into a folder.
        """
        ...


class FolderPublisher:
    """Publishes into `root/v0000`, `root/v0001`, ... and points `root/LATEST.json` at the newest.

    A folder appears under its name when it is whole, and `LATEST.json` names it, with the SHA-256 of its files, only then: a
    reader never sees half a policy. See `syvla.serving.rl.published_policies`, which reads them.

    Args:
        root: Folder; on a disk that the server sees.
        keep: Versions that are kept, the newest ones.
    """

    def __init__(self, root: str | Path, keep: int = 3) -> None:
        self.root, self.keep = Path(root), keep

    def publish(self, version: int, policy_version: str, save: Callable[[Path], None]) -> None:
        if self._published(version, policy_version):
            return
        target = self.root / f"v{version:04d}"
        temporary = self.root / f".{target.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # what a crash left
        temporary.mkdir(parents=True)
        save(temporary)
        hashes = {path.name: sha256_of(path) for path in sorted(temporary.iterdir()) if path.is_file()}
        policy = PublishedPolicy(version, policy_version, target, hashes)
        write_json(temporary / FACTS, policy.facts)
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        point_latest(self.root, policy)
        for old in sorted(self.root.glob("v[0-9]*"))[: -self.keep]:
            if old != target:
                shutil.rmtree(old)

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

    def latest(self) -> dict | None:
        """Contents of `LATEST.json`, None before the first policy."""
        policy = read_latest(self.root)
        return None if policy is None else policy.facts
