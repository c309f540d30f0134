"""Files below a distant folder by fsspec: their versions, and downloads that survive a link that is down for a while."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 180.0
"""How long a link may be down before a run ends."""

PART_BYTES = 16 * 2**20  # a download goes on at the part at which the link broke
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0  # seconds between attempts
_PASSING_STATUS = (408, 425, 429)  # of the 4xx, those that go away by themselves
_NO_CREDENTIALS = ("NoCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError", "RefreshError")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}

_INHERITED: list[Any] = []
"""Connections of the parent of this process: closing one would take its socket out of the parent's event loop as well."""

Result = TypeVar("Result")


class StreamingError(OSError):
    """A file that cannot be had from the source; the message names it and the fix."""


@dataclass(frozen=True)
class FileVersion:
    """Which state of a file: its bytes, what the source calls this state, and its SHA-256 where the source says it."""

    size: int
    tag: str
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.size} bytes, version {self.tag or 'unknown'}"


class RemoteFolder:
    """Read-only files below a URL. Safe to pickle into a worker, to fork, and to share between threads.

    Args:
        url: Of the folder, in any protocol of fsspec.
        immutable: Whether a file can never change, as those of a commit.
        patience: Seconds for which a failing request is tried again.

    Raises:
        StreamingError: The protocol is unknown, local, or its package is missing.
    """

    _connected: tuple[Any, str] | None
    _lock: threading.Lock
    _process: int

    def __init__(self, url: str, *, immutable: bool = False, patience: float = PATIENCE_SECONDS):
        self.url, self.immutable, self.patience = url.rstrip("/"), immutable, patience
        parts = urlsplit(self.url)
        if parts.scheme in ("", "file", "local"):
            raise StreamingError(f"streaming: {url} is local; pass its path and leave streaming out")
        if parts.password or parts.query:
            raise StreamingError(
                f"path: {parts.scheme}://{parts.hostname or ''}{parts.path} carries credentials or a query; leave them out, "
                "and give credentials by the environment or the configuration file of the storage service"
            )
        self._reading = {"cache_type": "none"} if parts.scheme == "hf" else {}  # else it reads ahead of every part
        self._begin()
        self._connect()

    def path_of(self, name: str) -> str:
        """URL of a file, for messages."""
        return f"{self.url}/{name}"

    def names_below(self, folder: str) -> list[str] | None:
        """Files below a folder, relative to the root; None where the protocol lists nothing."""
        if urlsplit(self.url).scheme in ("http", "https"):
            return None
        system, root = self._connect()
        found = self._patiently(folder, lambda: system.find(f"{root}/{folder}"))
        return sorted(str(name)[len(root) :].lstrip("/") for name in found)

    def version(self, name: str) -> FileVersion:
        """What the source says of a file now.

        Raises:
            StreamingError: It is missing (`FileMissingError`), may not be read, or its size is unknown.
        """
        system, root = self._connect()
        info: Mapping[str, Any] = self._patiently(name, lambda: system.info(f"{root}/{name}"))
        if info.get("type") == "directory" or not isinstance(info.get("size"), int):
            raise StreamingError(
                f"{self.path_of(name)}: the source does not say how many bytes the file has; use a server that sends "
                "Content-Length"
            )
        tag = next((info[key] for key in _TAGS if info.get(key)), "")
        lfs = info.get("lfs")
        digest = (lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)) if lfs else None
        return FileVersion(int(info["size"]), str(tag).strip('"'), digest)

    def download(self, name: str, version: FileVersion, file: BinaryIO) -> None:
        """Writes the whole file, which must be of this version, and checks it.

        Raises:
            StreamingError: It is cut short, was replaced meanwhile, or could not be had for `patience` seconds.
        """
        digest, done = hashlib.sha256(), 0
        while done < version.size:
            stop = min(version.size, done + PART_BYTES)
            part = self._patiently(name, partial(self._part, name, done, stop))
            if len(part) != stop - done:
                raise StreamingError(
                    f"{self.path_of(name)}: the server sent {len(part)} bytes for a range of {stop - done}; streaming needs "
                    "one that answers range requests"
                )
            file.write(part)
            digest.update(part)
            done = stop
        if version.sha256 is not None and digest.hexdigest() != version.sha256:
            raise StreamingError(
                f"{self.path_of(name)}: the bytes that arrived are not those that the source lists; try again"
            )
        if version.size > PART_BYTES and not self.immutable:
            self.require_version(name, version)

    def require_version(self, name: str, version: FileVersion) -> None:
        """Makes sure that the source still has this version.

        Raises:
            StreamingError: It has another one.
        """
        if (found := self.version(name)) != version:
            raise StreamingError(
                f"{self.path_of(name)}: changed at the source during the run, which began with {version} and now finds "
                f"{found}; put the former file back, or begin a new run. Pin a revision where the source has them"
            )

    def _part(self, name: str, begin: int, stop: int) -> bytes:
        system, root = self._connect()
        part: bytes = system.cat_file(f"{root}/{name}", start=begin, end=stop, **self._reading)
        if len(part) < stop - begin:
            raise _CutShort(f"{len(part)} of {stop - begin} bytes from {begin} on arrived")
        return part

    def _patiently(self, name: str, call: Callable[[], Result]) -> Result:
        deadline, pause = time.monotonic() + self.patience, _FIRST_PAUSE
        while True:
            try:
                return call()
            except Exception as error:
                problem = self._lasting_problem(name, error)
                if problem is not None:
                    raise problem from error
                wrapped = isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception)
                shown = error.__cause__ if wrapped else error
                what = f"{self.path_of(name)}: {type(shown).__name__}: {shown or 'no answer'}"
                if time.monotonic() + pause > deadline:
                    raise StreamingError(
                        f"{what}; tried for {self.patience:g} s. Check the link and the server, then resume the run"
                    ) from error
                logger.warning("%s; trying again in %g s", what, pause)
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)

    def _lasting_problem(self, name: str, error: Exception) -> Exception | None:
        """What to raise of an error that trying again does not mend; None of one that may pass."""
        if isinstance(error, StreamingError):
            return error
        chain: list[BaseException] = [error]
        if isinstance(error, FileNotFoundError) and error.__cause__ is not None:  # as fsspec's HTTP calls every failure
            chain.append(error.__cause__)
        status = next((code for link in chain if (code := _status(link)) is not None), None)
        where = self.path_of(name)
        refused = status in (401, 403) or any(isinstance(link, PermissionError) for link in chain)
        if refused or any(type(link).__name__ in _NO_CREDENTIALS for link in chain):
            return StreamingError(
                f"{where}: the source refuses access ({status or error}); log in (`hf auth login`, HF_TOKEN, the AWS or Google "
                "configuration) with an account that may read it"
            )
        if status is not None and (status >= 500 or status in _PASSING_STATUS):
            return None
        absent = isinstance(error, FileNotFoundError) and (len(chain) == 1 or isinstance(chain[1], FileNotFoundError))
        if absent or status in (404, 410):
            return FileMissingError(
                f"{where}: missing at the source (404), although the dataset's metadata names it or needs it; check the path, "
                "or upload the file again"
            )
        if status is not None and status >= 400:
            return StreamingError(f"{where}: the source answers {status} ({error}); check the path")
        passing = isinstance(error, OSError | TimeoutError | EOFError) or _is_of_the_link(error)
        return None if passing else error

    def _connect(self) -> tuple[Any, str]:
        """File system of this process, and the root as it names it."""
        if self._process != os.getpid():  # a fork shares the sockets of its parent: each process connects anew
            _INHERITED.append(self._connected)
            self._begin()
        with self._lock:
            if self._connected is None:
                self._connected = self._open()
            return self._connected

    def _open(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        scheme = urlsplit(self.url).scheme
        # A commit's folders are listed once each; elsewhere a listing could be older than the file.
        options: dict[str, Any] = {"use_listings_cache": self.immutable, "skip_instance_cache": True}
        try:
            if scheme in ("http", "https"):
                import aiohttp

                timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
                options["client_kwargs"] = {"timeout": timeout}
            system, root = url_to_fs(self.url, **options)
        except ImportError as error:
            package = _PACKAGES.get(scheme, "fsspec[http]" if scheme.startswith("http") else str(error))
            raise StreamingError(f"path: {self.url} needs a package: pip install '{package}'") from error
        except ValueError as error:
            raise StreamingError(f"path: {self.url}: {error}; fsspec knows s3, gs, hf, http and others") from error
        return system, str(root).rstrip("/")

    def _begin(self) -> None:
        self._connected, self._lock, self._process = None, threading.Lock(), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value for key, value in self.__dict__.items() if key in ("url", "immutable", "patience", "_reading")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


class FileMissingError(StreamingError, FileNotFoundError):
    """A file that the source does not have."""


class _CutShort(OSError):
    """Fewer bytes than asked for."""


_TAGS = (
    "ETag",
    "etag",
    "blob_id",
    "md5Hash",
    "content_md5",
    "checksum",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)


def _status(error: BaseException) -> int | None:
    """HTTP status that an error of a client library carries."""
    response = getattr(error, "response", None)
    for owner in (error, response):
        for name in ("status", "status_code", "code"):
            value = getattr(owner, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return value
    if isinstance(response, Mapping):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return found if isinstance(found, int) else None
    return None


def _is_of_the_link(error: Exception) -> bool:
    """Whether an error that is no OSError tells of a connection: those of aiohttp, httpx, requests and botocore."""
    return type(error).__module__.partition(".")[0] in (
        "aiohttp",
        "httpx",
        "httpcore",
        "requests",
        "urllib3",
        "botocore",
    )
