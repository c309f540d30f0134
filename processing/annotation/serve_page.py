"""Runs the page's server until it is told to stop."""

from __future__ import annotations

import argparse
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .access import is_loopback, read_token

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_access_arguments(parser: argparse.ArgumentParser, port: int) -> None:
    """Options of who may see the page."""
    access = parser.add_argument_group("access")
    access.add_argument("--host", default="127.0.0.1", help="address to listen on")
    access.add_argument("--port", type=int, default=port, help="port to listen on; 0: a free one")
    access.add_argument("--token-file", type=Path, help="file with a token that the page asks for")


def token_of(arguments: argparse.Namespace) -> str | None:
    """The token of a command line.

    Raises:
        ValueError: There is none, and other machines could connect.
    """
    token = None if arguments.token_file is None else read_token(arguments.token_file)
    if token is None and not is_loopback(arguments.host):
        raise ValueError(
            f"host: {arguments.host} can be reached from other machines; give a token with --token-file, or leave --host out "
            "and connect by `ssh -L`"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ValueError: The port is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host.strip("[]"), port))
        found.listen(128)  # a browser that is quicker than the server waits
    except (OSError, OverflowError) as error:
        found.close()
        raise ValueError(f"host, port: cannot listen on {host}:{port} ({error}); give another --port, or 0") from error
    return found


def page_address(host: str, bound: socket.socket) -> str:
    """What to open in a browser."""
    name = f"[{host.strip('[]')}]" if ":" in host else host
    return f"http://{name}:{bound.getsockname()[1]}/"


def run_server(app: FastAPI, bound: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM, and returns. A second SIGINT, after that, interrupts as usual."""
    import uvicorn

    # uvicorn sends itself the signal again when it has ended, which would end the process before its changes are saved.
    former = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    config: Any = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=3)
    try:
        uvicorn.Server(config).run([bound])
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
