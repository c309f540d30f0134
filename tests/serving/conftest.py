"""Servers in this process, on free ports, and what a client sends them."""

import json
from pathlib import Path

import numpy as np
import pytest
from browser import browsers
from rl_robot import publish
from served_policies import CountingPolicy

from syvla.serving import PolicyServer
from syvla.serving.rl.scheduler import RLScheduler, RLSettings
from syvla.serving.server.settings import ServerSettings

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
def serve(tmp_path):
    """Starts servers with settings and policy of one's own; all are stopped at the end, before `tmp_path` goes."""
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


@pytest.fixture
def run(tmp_path):
    publish(tmp_path, 0)
    return tmp_path


@pytest.fixture
def serve_run(run):
    """Starts servers of the run, one after another; `servers.call(path, body)` asks the last one."""
    servers = []

    def start(**settings):
        token = settings.pop("token", None)
        loaded: list[Path] = []

        def load(folder):
            loaded.append(folder)
            version = json.loads((folder / "config.json").read_text())["version"]
            return CountingPolicy(dim=3 if version == 66 else 2, version="to be set")

        scheduler = RLScheduler(RLSettings(run, **{"poll_s": 0.05, **settings}), load)
        server = PolicyServer(None, ServerSettings(port=0, token=token), rl=scheduler).start(120)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def open_page(tmp_path_factory):
    """Opens an address in a browser of its own: `open_page(url) -> Page`."""
    with browsers(lambda: tmp_path_factory.mktemp("browser")) as start:
        yield start
