"""All clients together: beyond the budget a request is refused with 503, and what was counted in is counted out again."""

import io
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import numpy as np
import pytest
from PIL import Image
from served_policies import CountingPolicy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from syvla.serving.server.settings import ServerSettings
from syvla.serving.wire.msgpack_codec import CodecLimits, pack, unpack

LIMITS = {
    "limits": CodecLimits(max_message_bytes=100_000),
    "max_pixels": 300 * 300,
    "max_memory_bytes": 1_100_000,
    "deadline_s": 300,
    "max_batch_size": 1,
}
HEADERS = {"Content-Type": "application/msgpack"}


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def post(server, body: bytes) -> httpx.Response:
    return httpx.post(f"http://{server.url}/v1/act", content=body, headers=HEADERS, timeout=120)


def upgraded(server) -> socket.socket:
    """A websocket by hand, so that half a message can be sent."""
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    raw.sendall(f"{head}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode())
    assert b"101" in raw.recv(4096)
    return raw


def test_images_that_are_large_once_decoded_count_while_their_requests_wait(serve, request_of):
    """1 kB each on the wire, 270 kB decoded: four fit, further ones are told to come again."""
    policy = CountingPolicy()
    server = serve(policy, **LIMITS)
    file = io.BytesIO()
    Image.new("RGB", (300, 300)).save(file, "PNG")
    body = pack(request_of(**{"observation.images.center": file.getvalue()}))
    policy.hold()
    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(post, server, body) for _ in range(4)]
        until(lambda: server.service.memory.used > 4 * 270_000)
        refused = post(server, body)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert "memory: expected at most 1100000 bytes in the requests of all clients" in refused.json()["error"]
        policy.release()
        assert [job.result().status_code for job in jobs] == [200] * 4
    assert server.service.memory.used == 0
    assert post(server, body).status_code == 200
    assert server.service.metrics.value("rejected", "cause", "memory") == 1


def test_messages_half_sent_count_and_a_refused_one_leaves_its_connection(serve, request_of):
    server = serve(**LIMITS)
    with connect(f"ws://{server.url}", compression=None) as talk:
        talk.recv()
        half = [upgraded(server) for _ in range(11)]
        for raw in half:
            raw.sendall(b"\x82\xff" + struct.pack(">Q", 99_000) + b"\0\0\0\0" + b"x" * 1000)
        until(lambda: server.service.memory.used == 11 * 99_100)
        image = np.zeros((100, 100, 3), np.uint8)
        message = pack(request_of(**{"observation.images.center": image}))
        talk.send(message)
        assert talk.recv(timeout=60).startswith("memory: expected at most 1100000 bytes in the requests of all clients")
        assert post(server, message).status_code == 503
        assert httpx.get(f"http://{server.url}/healthz").status_code == 200
        for raw in half:
            raw.close()
        until(lambda: server.service.memory.used == 0)
        talk.send(message)
        assert unpack(talk.recv(timeout=60))[0]["seed"] == 3
    assert server.service.metrics.value("rejected", "cause", "memory") == 2
    until(lambda: server.service.memory.used == 0)


def test_a_message_in_fragments_that_finds_no_more_memory_is_told_so(serve):
    server = serve(**LIMITS)
    half = [upgraded(server) for _ in range(11)]
    for raw in half:
        raw.sendall(b"\x82\xff" + struct.pack(">Q", 99_000) + b"\0\0\0\0")
    until(lambda: server.service.memory.used == 11 * 99_100)
    with connect(f"ws://{server.url}", compression=None, max_size=None) as talk:
        talk.recv()
        with suppress(ConnectionClosed):  # the answer may come before the last fragment has left
            talk.send(bytes(5_000) for _ in range(4))
        assert talk.recv(timeout=60).startswith("memory: expected at most 1100000 bytes")
        with pytest.raises(ConnectionClosed) as closed:
            talk.recv(timeout=60)
        assert closed.value.rcvd.code == 1013
    for raw in half:
        raw.close()
    until(lambda: server.service.memory.used == 0)


def test_a_budget_must_hold_one_request():
    with pytest.raises(
        ValueError, match=r"max_memory_bytes: expected at least \d+, what one message and its three images"
    ):
        ServerSettings(max_memory_bytes=10**6)
