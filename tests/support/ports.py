"""Ports for processes that must be told one, kept from everyone else until they take them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 on which nobody listens, and which the system gives to nobody else meanwhile.

    It stays bound here, without listening, so that servers which set SO_REUSEADDR, as those of this project, of torch and
    of gloo do, can listen on it, once or again and again.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
