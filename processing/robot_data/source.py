"""Finds a dataset: a local folder, or a repository on the Hub that is downloaded into the cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from .lerobot_format import INFO_PATH, READ_VERSIONS
from .metadata import read_metadata

logger = logging.getLogger(__name__)


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
        revision: Hub tag, branch or commit; None takes the first tag of `READ_VERSIONS` that the repository has.
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
    root, tag = _download(repo_id, revision, ["meta/*"])
    metadata = read_metadata(root)
    videos = [key for key, feature in metadata.info.features.items() if feature["dtype"] == "video"]
    wanted = [key for key in videos if cameras is None or key in set(cameras)]
    if episodes is not None:
        episodes = [episode for episode in episodes if 0 <= episode < len(metadata.lengths)]
        patterns = {metadata.data_path(episode) for episode in episodes}
        patterns |= {metadata.video(episode, key).path for episode in episodes for key in wanted}
    else:
        patterns = {"data/*", *(f"videos/*{key}/*" for key in wanted)}
    return _download(repo_id, tag, sorted({"meta/*", *patterns}))[0]


def _download(repo_id: str, revision: str | None, patterns: list[str]) -> tuple[Path, str]:
    """(folder of the snapshot, the revision that was there)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    # Offline the Hub cannot say that a tag does not exist; online a file that did not arrive is no reason for another tag.
    absent = (RevisionNotFoundError, LocalEntryNotFoundError) if HF_HUB_OFFLINE else (RevisionNotFoundError,)
    tags = READ_VERSIONS if revision is None else (revision,)
    first: Exception | None = None
    for tag in tags:
        try:
            root = Path(snapshot_download(repo_id, revision=tag, repo_type="dataset", allow_patterns=patterns))
        except absent as error:
            first = first or error
            continue
        logger.info("%s: revision %s", repo_id, tag)
        return root, tag
    if not isinstance(first, RevisionNotFoundError):
        assert first is not None
        raise first
    raise ValueError(
        f"{repo_id}: the Hub dataset has no revision {' or '.join(map(repr, tags))}; LeRobot's tools tag a dataset with the"
        " version of its format: pass revision='main' for an untagged one"
    ) from first
