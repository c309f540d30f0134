"""Hands finished policies to whoever serves them: a folder per version, and a file that names the newest one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from processing.lerobot_format import write_json

LATEST = "LATEST.json"


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

    A folder appears under its name when it is whole, and `LATEST.json` names it, with the SHA-256 of its weight files, only
    then: a reader never sees half a policy.

    Args:
        root: Folder; on a disk that the server sees.
        keep: Versions that are kept, the newest ones.
    """

    def __init__(self, root: str | Path, keep: int = 3) -> None:
        self.root, self.keep = Path(root), keep

    def publish(self, version: int, policy_version: str, save: Callable[[Path], None]) -> None:
        known = self.latest()
        if known is not None and (known["version"], known["policy_version"]) == (version, policy_version):
            return
        target = self.root / f"v{version:04d}"
        temporary = self.root / f".{target.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # what a crash left
        temporary.mkdir(parents=True)
        save(temporary)
        hashes = {path.name: _sha256(path) for path in sorted(temporary.glob("*.safetensors"))}
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        facts = {"version": version, "policy_version": policy_version, "path": target.name, "sha256": hashes}
        write_json(self.root / LATEST, facts)
        for old in sorted(self.root.glob("v[0-9]*"))[: -self.keep]:
            if old != target:
                shutil.rmtree(old)

    def latest(self) -> dict | None:
        """Contents of `LATEST.json`, None before the first policy."""
        path = self.root / LATEST
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
