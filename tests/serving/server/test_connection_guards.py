"""The frame filter against websockets' own framing: what passes is unchanged however the stream is cut, the rest skipped."""

import itertools
import socket

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from syvla.serving.server.connection_guards import OVERSIZED, FrameFilter

LIMIT = 300


def wire(*frames: tuple[Opcode, bytes, bool]) -> bytes:
    return b"".join(Frame(opcode, data, fin).serialize(mask=True) for opcode, data, fin in frames)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


FRAMES = st.lists(
    st.tuples(st.sampled_from([Opcode.BINARY, Opcode.TEXT, Opcode.PING]), st.binary(max_size=125), st.just(True))
    | st.tuples(st.just(Opcode.BINARY), st.integers(126, LIMIT).map(bytes), st.just(True)),
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(FRAMES, st.lists(st.integers(0, 5000), max_size=6))
def test_frames_within_the_limit_pass_unchanged(frames, places):
    data, frame_filter = wire(*frames), FrameFilter(LIMIT)
    assert b"".join(map(frame_filter.feed, cut(data, places))) == data
    assert not frame_filter.incomplete


@settings(max_examples=300, deadline=None)
@given(st.integers(LIMIT + 1, 70_000), st.booleans(), st.lists(st.integers(0, 80_000), max_size=6))
def test_larger_frames_are_replaced_by_their_size(size, fragmented, places):
    """With the frames of the same message that follow; control frames between them pass."""
    large = [(Opcode.BINARY, bytes(size), not fragmented)]
    if fragmented:
        large += [(Opcode.PING, b"?", True), (Opcode.CONT, bytes(10), False), (Opcode.CONT, bytes(2000), True)]
    data = wire(*large, (Opcode.BINARY, b"next", True))
    frame_filter = FrameFilter(LIMIT)
    passed = b"".join(map(frame_filter.feed, cut(data, places)))
    text = f"{OVERSIZED}{size}".encode()
    assert passed.startswith(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
    assert len(passed) == 6 + len(text) + (7 if fragmented else 0) + 10, "the ping and the next message pass"
    assert not frame_filter.incomplete


@pytest.mark.parametrize("left", [1, 3, 100])
def test_a_message_that_has_begun_is_incomplete(left):
    data = wire((Opcode.BINARY, bytes(200), True))
    frame_filter = FrameFilter(LIMIT)
    frame_filter.feed(data[:-left])
    assert frame_filter.incomplete
    frame_filter.feed(data[-left:])
    assert not frame_filter.incomplete
    frame_filter.feed(wire((Opcode.BINARY, b"a", False), (Opcode.PING, b"", True)))
    assert frame_filter.incomplete, "a fragment of a message"
    frame_filter.feed(wire((Opcode.CONT, b"b", True)))
    assert not frame_filter.incomplete


def test_connections_that_say_nothing_shut_nobody_out(serve, request_of):
    server = serve(max_connections=20)
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(100)]
    try:
        for _ in range(3):
            assert httpx.get(f"http://{server.url}/readyz", timeout=60).status_code == 200
        assert silent[0].recv(1) == b"", "the oldest one was ended"
        assert server.service.metrics.value("rejected", "cause", "silent") >= 80
    finally:
        for raw in silent:
            raw.close()
