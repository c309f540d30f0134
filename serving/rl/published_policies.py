"""Policies that a training run publishes: a folder per version, and a file that names the one to serve. No torch.

`policies/v0003/` holds a checkpoint and `POLICY.json` with the SHA-256 of each of its files; `policies/LATEST.json` names
the version to serve, with the same facts. Both appear by renaming, and nothing is loaded before its hashes are right, so
half a policy is never served.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syvla.durable_files import sha256_of

LATEST = "LATEST.json"
FACTS = "POLICY.json"
_FOLDER = re.compile(r"v\d{4,9}")


class DamagedPolicy(ValueError):
    """A published policy that is not whole; the message says what is wrong with it."""


@dataclass(frozen=True)
class PublishedPolicy:
    """A published version.

    Attributes:
        version: Number, from 0.
        policy_version: Hash of the weights by `syvla.serving.policies.digests.weights_digest`, which rollouts carry.
        folder: Where it is.
        sha256: File name to its hash.
    """

    version: int
    policy_version: str
    folder: Path
    sha256: dict[str, str]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def facts(self) -> dict[str, Any]:
        """Contents of `POLICY.json` and `LATEST.json`."""
        return {
            "version": self.version,
            "policy_version": self.policy_version,
            "path": self.folder.name,
            "sha256": self.sha256,
        }

    def verify(self) -> None:
        """Raises DamagedPolicy unless every file is there with its hash."""
        if not any(name.endswith(".safetensors") for name in self.sha256):
            raise DamagedPolicy(f"{self.folder}: its facts name no weights; publish it again")
        for name, expected in self.sha256.items():
            path = self.folder / name
            if path.resolve().parent != self.folder.resolve() or not path.is_file():
                raise DamagedPolicy(f"{path}: is missing; publish the policy again")
            if (got := sha256_of(path)) != expected:
                raise DamagedPolicy(
                    f"{path}: expected SHA-256 {expected[:12]}..., got {got[:12]}... ({path.stat().st_size} bytes); it is half "
                    "written or damaged, publish the policy again"
                )


def read_latest(root: Path) -> PublishedPolicy | None:
    """The policy that `LATEST.json` names; None before the first one.

    Raises:
        DamagedPolicy: The file is not one.
    """
    return _read(root, root / LATEST) if (root / LATEST).is_file() else None


def read_published(root: Path, name: str) -> PublishedPolicy:
    """The version in the folder of that name.

    Raises:
        DamagedPolicy: `name` is no folder of a version below `root`, or it has no facts.
    """
    if not _FOLDER.fullmatch(name):
        raise DamagedPolicy(f"version: expected the name of a folder below {root}, such as v0003, got {name[:60]!r}")
    if not (root / name / FACTS).is_file():
        raise DamagedPolicy(f"version: {root} has no whole policy {name}; it has {version_names(root)}")
    return _read(root, root / name / FACTS)


def version_names(root: Path) -> list[str]:
    """Names of the versions that are there, oldest first."""
    return sorted(path.parent.name for path in root.glob(f"v*/{FACTS}") if _FOLDER.fullmatch(path.parent.name))


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
    from syvla.processing.robot_data.lerobot_format import write_json

    write_json(root / LATEST, policy.facts)


def _read(root: Path, path: Path) -> PublishedPolicy:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version, digest, name, hashes = (facts[key] for key in ("version", "policy_version", "path", "sha256"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedPolicy(f"{path}: cannot be read ({type(error).__name__}: {error}); publish again") from None
    right = isinstance(version, int) and isinstance(digest, str) and isinstance(name, str) and isinstance(hashes, dict)
    if not right or not _FOLDER.fullmatch(name):
        raise DamagedPolicy(f"{path}: expected version, policy_version, path and sha256 of a published policy")
    return PublishedPolicy(version, digest, root / name, hashes)
