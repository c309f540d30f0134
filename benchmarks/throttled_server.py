"""A real HTTP server on the loopback that serves a folder over a slow or broken link, with range requests and ETags.

    python -m benchmarks.throttled_server FOLDER --megabytes_per_second 4

Stands in for a storage service: the link's bytes per second are shared by all connections, every request waits for the
link's latency, and faults can be set while it runs.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_BLOCK = 16 * 2**10


@dataclass
class Link:
    """What the link does, and what went over it. Faults hold until they are taken back.

    Attributes:
        bytes_per_second: Of all connections together; None: as fast as the machine.
        latency: Seconds before each answer.
        status: Answer to every request for a file under `data/` or `videos/`; None: the file.
        down: Close every connection without an answer.
        cut_after: Close a connection after so many bytes of a body.
        ranges: Answer range requests.
        requests: (method, path) of every request.
        bytes_sent: Of all bodies.
    """

    bytes_per_second: float | None = None
    latency: float = 0.0
    status: int | None = None
    down: bool = False
    cut_after: int | None = None
    ranges: bool = True
    requests: list[tuple[str, str]] = field(default_factory=list)
    bytes_sent: int = 0

    def __post_init__(self) -> None:
        self._lock, self._free_at = threading.Lock(), 0.0

    def carry(self, size: int) -> None:
        """Waits until the link has carried so many bytes."""
        with self._lock:
            self.bytes_sent += size
            if self.bytes_per_second is None:
                return
            begin = max(self._free_at, time.monotonic())
            self._free_at = begin + size / self.bytes_per_second
            wait = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait))

    def paths(self, method: str = "GET") -> list[str]:
        """Paths asked for by a method, in order."""
        return [path for asked, path in self.requests if asked == method]


class FolderServer(ThreadingHTTPServer):
    """Serves a folder on a free port of the loopback."""

    daemon_threads = True

    def __init__(self, folder: Path, link: Link | None = None, port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder, self.link = Path(folder), link or Link()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: clients that go away are what it is for."""

    @classmethod
    @contextmanager
    def running(cls, folder: Path, **settings: Any) -> Iterator[FolderServer]:
        """Serves until the `with` block ends; settings are those of `Link`."""
        server = cls(folder, Link(**settings))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FolderServer

    def log_message(self, *args: Any) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        link = self.server.link
        name = unquote(urlsplit(self.path).path).lstrip("/")
        link.requests.append((self.command, name))
        time.sleep(link.latency)
        if link.down:
            self.close_connection = True
            self.connection.close()
            return
        path = self.server.folder / name
        if link.status is not None and name.startswith(("data/", "videos/")):
            return self._refuse(link.status)
        if ".." in name or not path.is_file():
            return self._refuse(404)
        data = path.read_bytes()
        tag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        begin, stop = 0, len(data)
        if asked and link.ranges:
            begin, stop = int(asked[1]), min(len(data), int(asked[2]) + 1 if asked[2] else len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - begin))
        self.send_header("ETag", f'"{tag}"')
        self.send_header("Accept-Ranges", "bytes" if link.ranges else "none")
        self.end_headers()
        if body:
            self._send(memoryview(data)[begin:stop])

    def _send(self, data: memoryview) -> None:
        link, sent = self.server.link, 0
        while sent < len(data):
            if link.down or (link.cut_after is not None and sent >= link.cut_after):
                self.close_connection = True
                self.connection.close()
                return
            block = data[sent : min(sent + _BLOCK, link.cut_after or len(data))]
            link.carry(len(block))
            self.wfile.write(block)
            sent += len(block)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8008)
    parser.add_argument("--megabytes_per_second", type=float, default=4.0)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    options = parser.parse_args()
    link = Link(bytes_per_second=options.megabytes_per_second * 1e6, latency=options.latency)
    server = FolderServer(options.folder, link, options.port)
    print(f"{options.folder} at {server.url}")
    server.serve_forever()


if __name__ == "__main__":
    main()
