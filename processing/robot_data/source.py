"""Finds a dataset: a local folder, or a repository on the Hub that is downloaded into the cache."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .lerobot_format import CODEBASE_VERSION, INFO_PATH
from .metadata import read_metadata


def locate_dataset(
    root_or_repo_id: str | Path,
    *,
    revision: str | None = None,
    episodes: Iterable[int] | None = None,
    cameras: Iterable[str] | None = None,
) -> Path:
    """Returns the local folder of a dataset, downloading what is needed of a Hub repository.

    Args:
        root_or_repo_id: A folder with `meta/info.json`, or "organization/name" on the Hub.
        revision: Hub tag, branch or commit; None takes the tag that LeRobot sets for its format, "v3.0".
        episodes: Download only the files that hold these; None takes all.
        cameras: Download only these cameras' videos; None takes all.

    Raises:
        FileNotFoundError: No such folder, and not the form of a repository id.
        ValueError: The repository has no such revision; names the fix.
    """
    root = Path(root_or_repo_id)
    if root.is_dir():
        return root
    repo_id = str(root_or_repo_id)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id):
        raise FileNotFoundError(
            f"{repo_id}: no such folder; pass a folder that holds {INFO_PATH} or a Hub dataset 'organization/name'"
        )
    root = _download(repo_id, revision, ["meta/*"])
    metadata = read_metadata(root)
    videos = [key for key, feature in metadata.info.features.items() if feature["dtype"] == "video"]
    wanted = [key for key in videos if cameras is None or key in set(cameras)]
    if episodes is not None:
        episodes = [episode for episode in episodes if 0 <= episode < len(metadata.lengths)]
        patterns = {metadata.data_path(episode) for episode in episodes}
        patterns |= {metadata.video(episode, key).path for episode in episodes for key in wanted}
    else:
        patterns = {"data/*", *(f"videos/*{key}/*" for key in wanted)}
    return _download(repo_id, revision, sorted({"meta/*", *patterns}))


def _download(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    arguments: dict[str, Any] = {"repo_type": "dataset", "allow_patterns": patterns}
    try:
        return Path(snapshot_download(repo_id, revision=revision or CODEBASE_VERSION, **arguments))
    except RevisionNotFoundError as error:
        raise ValueError(
            f"{repo_id}: the Hub dataset has no revision {revision or CODEBASE_VERSION!r}; datasets of this format"
            " carry the tag 'v3.0' (older ones 'v2.1'): pass revision='v2.1', or revision='main' for an untagged one"
        ) from error
