"""Servers of other protocols are told from the bytes that those protocols begin with."""

import socket
import threading
from contextlib import contextmanager

import pytest

from syvla.evaluation import foreign_protocols
from syvla.evaluation.foreign_protocols import spoken_instead


@contextmanager
def server(greeting=b"", reply=b""):
    """Greets every connection, and answers what it is sent."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    connection.sendall(greeting)
                    if connection.recv(4096) and reply:
                        connection.sendall(reply)
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(
            socket.SHUT_RDWR
        )  # close() alone leaves a thread that still listens, and answers, in accept()
        thread.join()
        listening.close()


@pytest.mark.parametrize(
    ("greeting", "reply", "said"),
    [
        (bytes.fromhex("ff00000000000000017f03004e554c4c"), b"", "found ZeroMQ, which GR00T's"),  # RFC 23, ZMTP 3.0
        (bytes.fromhex("00000604000000000000040000ffff"), b"", "found HTTP/2, as gRPC; LeRobot's"),  # RFC 9113, 6.5
        (
            b"",
            b"HTTP/1.1 404 Not Found\r\nserver: uvicorn\r\n\r\n",
            "found HTTP without a websocket; for OpenVLA-OFT's server give its whole address",
        ),
        (b"", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", None),  # a websocket that was only slow
        (b"", b"HTTP/1.1 401 Unauthorized\r\n\r\n", None),
        (b"", b"SSH-2.0-OpenSSH_9.2\r\n", None),
    ],
)
def test_a_wrong_protocol_is_named(greeting, reply, said, monkeypatch):
    monkeypatch.setattr(foreign_protocols, "PATIENCE", 0.3)
    with server(greeting, reply) as url:
        found = spoken_instead(url)
    assert (found is None) if said is None else (said in found)


def test_nobody_is_nothing(monkeypatch):
    monkeypatch.setattr(foreign_protocols, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert spoken_instead(f"ws://127.0.0.1:{port}") is None
