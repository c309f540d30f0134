"""docs/protocol_frames.md against a real server: its requests are sent as they stand, every byte of the answers compared."""

import re
import socket
import struct
from pathlib import Path

import pytest
from frame_listing import fenced, listing, pattern, text_listing
from served_policies import CountingPolicy

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "protocol_frames.md").read_text(encoding="utf-8")
DIFFERING = ("timings_ms", "policy_timing", "server_timing")
MASK = b"\x11\x22\x33\x44"


class RawConnection:
    """A websocket without a library, so that nothing hides the bytes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self.stream = self.socket.makefile("rb")
        head = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.socket.sendall(f"{head}Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        assert self.stream.readline().startswith(b"HTTP/1.1 101 ")
        while self.stream.readline() != b"\r\n":
            pass

    def receive(self) -> tuple[bytes, bytes]:
        """(header, payload) of the server's next frame that is no ping."""
        while True:
            header = self.stream.read(2)
            size = header[1]
            if size >= 126:
                header += self.stream.read(2 if size == 126 else 8)
                size = int.from_bytes(header[2:], "big")
            payload = self.stream.read(size)
            if header[0] != 0x89:
                return header, payload

    def send(self, payload: bytes) -> bytes:
        """Sends one binary frame; returns its header without the mask."""
        size = len(payload)
        header = struct.pack(">BB", 0x82, 0x80 | size) if size < 126 else struct.pack(">BBH", 0x82, 0x80 | 126, size)
        self.socket.sendall(header + MASK + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload)))
        return header


@pytest.fixture
def connection(serve):
    raw = RawConnection(serve(CountingPolicy(horizon=2)).port)
    yield raw
    raw.stream.close()
    raw.socket.close()


def header_of(frame: str) -> bytes:
    """The bytes of a row of the page's table of headers."""
    return bytes.fromhex(re.search(rf"^\| {frame} \| `([0-9a-f ]+)`", PAGE, re.MULTILINE)[1])


def bytes_of(listed: str) -> bytes:
    return bytes.fromhex("".join(line.partition("#")[0] for line in listed.splitlines()))


def test_every_frame_of_a_connection_is_the_page_s(connection):
    (metadata,), (request,), (reply,) = (fenced(PAGE, title) for title in ("Metadata", "Request", "Reply"))
    wrong, error = fenced(PAGE, "Error")

    header, payload = connection.receive()
    assert header == header_of("metadata")
    assert pattern(metadata).fullmatch(payload)
    assert metadata == listing(payload), "what stands behind the bytes"

    assert connection.send(bytes_of(request)) == header_of("request")
    assert request == listing(bytes_of(request))
    header, payload = connection.receive()
    assert header == header_of("reply")
    assert pattern(reply).fullmatch(payload)
    assert reply == listing(payload, DIFFERING)

    assert connection.send(bytes_of(wrong)) == header_of("request that is wrong")
    assert wrong == listing(bytes_of(wrong))
    header, payload = connection.receive()
    assert header == header_of("error")
    assert pattern(error).fullmatch(payload)
    assert error == text_listing(payload)

    connection.send(bytes_of(request))
    header, payload = connection.receive()
    assert header[0] == 0x82, "the connection goes on"


def test_msgpack_alone_makes_the_page_s_request():
    """As openpi's client does it, without this project's codec."""
    import msgpack
    import numpy as np

    def encode(array):
        return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}

    observation = {
        "observation.images.center": np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8),
        "observation.state": np.array([0.5, -1.0], np.float32),
        "prompt": "go",
        "seed": 3,
    }
    (request,) = fenced(PAGE, "Request")
    assert msgpack.packb(observation, default=encode) == bytes_of(request)


@pytest.mark.parametrize("place", [0, 40, 99, 162])
def test_a_changed_byte_is_found(place):
    """The listing is no better than its comparison: any other byte, and it does not match."""
    (request,) = fenced(PAGE, "Request")
    frame = bytearray(bytes_of(request))
    assert pattern(request).fullmatch(bytes(frame))
    frame[place] ^= 1
    assert not pattern(request).fullmatch(bytes(frame))
