"""Servers in this process, on free ports, and what a client sends them."""

import numpy as np
import pytest
from served_policies import CountingPolicy

from serving import PolicyServer
from serving.server_settings import ServerSettings

IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


@pytest.fixture
def request_of():
    """Builds a request in the native dialect for a robot of two dimensions; None removes a key."""

    def make(**changes):
        request = {
            "observation.images.center": IMAGE,
            "observation.state": np.zeros(2, np.float32),
            "prompt": "lift",
            "seed": 3,
        }
        return {key: value for key, value in {**request, **changes}.items() if value is not None}

    return make


@pytest.fixture
def serve():
    """Starts servers with settings and policy of one's own; all are stopped at the end."""
    servers: list[PolicyServer] = []

    def start(policy=None, *, record=None, routers=(), wait=True, **settings) -> PolicyServer:
        server = PolicyServer(
            CountingPolicy() if policy is None else policy,
            ServerSettings(port=0, **settings),
            record=record,
            routers=routers,
        )
        servers.append(server.start(120, wait=wait))
        return server

    yield start
    for server in servers:
        server.stop()
