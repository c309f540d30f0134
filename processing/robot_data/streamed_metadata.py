"""The `meta/` folder of a dataset that is streamed: the only part of it that is read before training."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from syvla.durable_files import make_folder
from syvla.processing.streaming.file_cache import require_file_locks
from syvla.processing.streaming.remote_folder import FileMissingError, FileVersion, RemoteFolder, StreamingError

from .lerobot_format import CHUNKS_SIZE, EPISODES_PATH, INFO_PATH, READ_VERSIONS, TASKS_PATH, is_safe_path, next_file
from .vector_parts import MODALITY_PATH

try:
    import fcntl
except ImportError:  # Windows, see `require_file_locks`
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_OTHERS = (
    "meta/stats.json", TASKS_PATH, MODALITY_PATH, "meta/tasks.jsonl", "meta/episodes.jsonl", "meta/episodes_stats.jsonl",
)  # fmt: skip
_MOST_BYTES, _LARGEST_INFO = 64 * 2**30, 64 * 2**20
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/?")


@dataclass(frozen=True)
class StreamedMetadata:
    """A streamed dataset before any frame is read.

    Attributes:
        source: The dataset's folder.
        root: Local folder with its `meta/`.
        state: What tells this state of the dataset from another.
    """

    source: RemoteFolder
    root: Path
    state: str


def is_url(path: str | Path) -> bool:
    """Whether a dataset's path is a URL, such as s3://bucket/folder."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)))


def default_cache_folder() -> Path:
    """`syvla/streaming` in the Hugging Face cache."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "syvla" / "streaming"


def locate_streamed(
    path: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None, patience: float | None = None
) -> StreamedMetadata:
    """Finds a dataset that is streamed and fetches its `meta/`.

    Args:
        path: "organization/name" on the Hub, hf://datasets/organization/name[@revision], or a folder in any other protocol
            of fsspec, such as s3://, gs:// or https://.
        revision: Of a Hub dataset; None takes the first tag of `READ_VERSIONS` that it has. The commit is pinned for the run.
        cache_dir: Folder of the cache; None is `default_cache_folder()`.
        patience: Seconds that a link may be down; None is that of `RemoteFolder`.

    Raises:
        ValueError: The path is local, no dataset's, or has no such revision.
        StreamingError: Its `meta/` cannot be had.
    """
    require_file_locks()
    if Path(path).is_dir():
        raise ValueError(
            f"streaming: {path} is a local folder, which is read without it; leave streaming and cache_gb out"
        )
    url, commit = _source_url(str(path), revision)
    source = RemoteFolder(url, immutable=commit is not None, **({} if patience is None else {"patience": patience}))
    folder = Path(cache_dir) if cache_dir is not None else default_cache_folder()
    files = dict(_metadata_files(source))
    listed = [f"{name} {version.size} {version.tag}" for name, version in sorted(files.items())]
    state = hashlib.sha256("\n".join([url, *listed]).encode()).hexdigest()[:32]
    total = sum(version.size for version in files.values())
    if total > _MOST_BYTES:
        raise StreamingError(f"{source.path_of('meta')}: {total} bytes, more than metadata can have; check the path")
    name = re.sub(r"@[0-9a-f]{40}$", "", source.url).rpartition("/")[2]
    root = folder / "metadata" / state / name
    with _locked(folder / "metadata" / f"{state}.lock"):
        if not (root / INFO_PATH).is_file() or not all(version.tag for version in files.values()):
            _fetch(source, files, root)
    logger.info("%s: %d metadata files, %.1f MB", url, len(files), total / 1e6)
    return StreamedMetadata(source, root, state)


def _source_url(path: str, revision: str | None) -> tuple[str, str | None]:
    """(URL of a dataset's folder, the commit of a Hub dataset)."""
    if is_url(path) and not path.startswith("hf://"):
        if revision is not None:
            raise ValueError(f"revision: {path} has none, only datasets on the Hub do; leave it out")
        return path, None
    repo_id, given = path, None
    if is_url(path):
        match = _HUB_URL.fullmatch(path)
        if match is None:
            raise ValueError(
                f"path: {path}: expected hf://datasets/organization/name or hf://datasets/organization/name@revision"
            )
        repo_id, given = match[1], match[2]
        if given is not None and revision is not None and given != revision:
            raise ValueError(f"revision: {revision!r}, but {path} says {given!r}; give one")
    elif not _HUB_NAME.fullmatch(path):
        raise FileNotFoundError(
            f"{path}: no such folder; streaming reads a Hub dataset 'organization/name' or a URL such as s3://bucket/folder"
        )
    commit = _commit(repo_id, revision or given)
    return f"hf://datasets/{repo_id}@{commit}", commit


def _commit(repo_id: str, revision: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError

    tags = READ_VERSIONS if revision is None else (revision,)
    for tag in tags:
        try:
            commit = HfApi().dataset_info(repo_id, revision=tag).sha
        except RevisionNotFoundError:
            continue
        except OfflineModeIsEnabled as error:
            raise StreamingError(f"{repo_id}: streaming needs the Hub, and HF_HUB_OFFLINE is set; unset it") from error
        except (HfHubHTTPError, OSError) as error:
            raise StreamingError(
                f"{repo_id}: the Hub cannot be asked for the dataset ({error}); check its name, `hf auth login` and the link"
            ) from error
        logger.info("%s: revision %s, commit %s", repo_id, tag, commit)
        return str(commit)
    raise ValueError(
        f"{repo_id}: the Hub dataset has no revision {' or '.join(map(repr, tags))}; LeRobot's tools tag a dataset with the"
        " version of its format: pass revision='main' for an untagged one"
    )


def _metadata_files(source: RemoteFolder) -> Iterator[tuple[str, FileVersion]]:
    """Every file of `meta/`; where the protocol lists nothing, those that the format names."""
    names = source.names_below("meta")
    if names is not None:
        if INFO_PATH not in names:
            raise FileMissingError(
                f"{source.path_of(INFO_PATH)}: missing at the source; is this the folder of a LeRobot dataset?"
            )
        for name in names:
            if not is_safe_path(name) or not name.startswith("meta/"):
                raise StreamingError(f"{source.path_of(name)}: a name that leaves the dataset; check the path")
            yield name, source.version(name)
        return
    version = source.version(INFO_PATH)
    yield INFO_PATH, version
    most = _total_episodes(source, version)
    for name in _OTHERS:
        if (found := _version_if_any(source, name)) is not None:
            yield name, found
    place = (0, 0)
    for _ in range(most):  # a server that has an answer for every path would else never end
        name = EPISODES_PATH.format(chunk_index=place[0], file_index=place[1])
        if (found := _version_if_any(source, name)) is None:
            return
        yield name, found
        place = next_file(*place, CHUNKS_SIZE)


def _total_episodes(source: RemoteFolder, version: FileVersion) -> int:
    """Of `meta/info.json`, which a file of episodes holds at least one of."""
    if version.size <= _LARGEST_INFO:
        content = io.BytesIO()
        source.download(INFO_PATH, version, content)
        try:
            return int(json.loads(content.getvalue())["total_episodes"])
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
    raise StreamingError(f"{source.path_of(INFO_PATH)}: is no info.json of a LeRobot dataset; check the path")


def _version_if_any(source: RemoteFolder, name: str) -> FileVersion | None:
    try:
        return source.version(name)
    except FileMissingError:
        return None


def _fetch(source: RemoteFolder, files: dict[str, FileVersion], root: Path) -> None:
    """Downloads `meta/`, whole or not at all."""
    make_folder(root.parent)
    unfinished = root.with_name(f"{root.name}.{secrets.token_hex(4)}.part")
    try:
        for name, version in files.items():
            target = unfinished / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                source.download(name, version, file)
        shutil.rmtree(root, ignore_errors=True)
        os.replace(unfinished, root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    make_folder(path.parent)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
