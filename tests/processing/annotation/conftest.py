"""Datasets to annotate, and commands that serve the page, in processes of their own."""

import importlib
import json
import multiprocessing
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from browser import browsers
from dataset_recordings import record
from rl_robot import until

COMMAND = "syvla.processing.annotation.command"


class Served:
    """A command that serves its page, in a process of its own, and requests to it.

    The process is a fork of the tests' own, which have imported what takes a command seconds.
    """

    def __init__(self, folder, module, arguments, before):
        self.output = folder / "output.txt"
        self.errors = folder / "errors.txt"
        run = (importlib.import_module(module).main, [*map(str, arguments), "--port", "0"], before)
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=run)
        self.process.start()
        until(lambda: not self.process.is_alive() or "http://" in self.output.read_text(), 60)
        found = re.search(r"http://\S+/", self.output.read_text())
        assert found, self.errors.read_text()
        self.url = found[0]

    def _run(self, main, arguments, before):
        for path, descriptor in ((self.output, 1), (self.errors, 2)):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        if before is not None:
            before()
        sys.exit(main(arguments))

    def call(self, path, body=None, **headers):
        """Status and JSON (or bytes) of an answer."""
        headers = {"Content-Type": "application/json", **headers} if body is not None else headers
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path.removeprefix("/"), data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                raw = reply.read()
                return reply.status, json.loads(raw) if reply.headers["Content-Type"] == "application/json" else raw
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def annotate(self, episode, *subtasks):
        revision = self.call(f"/api/episode?episode={episode}")[1]["revision"]
        body = {"episode": episode, "revision": revision, "name": "test", "subtasks": [list(one) for one in subtasks]}
        return self.call("/api/subtasks", body)

    def stop(self, number=signal.SIGINT):
        """Ends the command; returns its exit status, output and errors."""
        os.kill(self.process.pid, number)
        self.process.join(60)
        return self.process.exitcode, self.output.read_text(), self.errors.read_text()


@pytest.fixture
def serve(tmp_path, tmp_path_factory):
    """Starts a command, ended before `tmp_path` goes:
    `serve(*arguments, module=..., before=...) -> Served`; `before` runs in its process."""
    held = []

    def start(*arguments, module=COMMAND, before=None):
        folder = tmp_path_factory.mktemp("served")
        (folder / "output.txt").touch()
        held.append(Served(folder, module, arguments, before))
        return held[-1]

    yield start
    for served in held:
        served.process.kill()
        served.process.join()


@pytest.fixture
def open_page(tmp_path_factory):
    """Opens an address in a browser of its own: `open_page(url) -> Page`."""
    with browsers(lambda: tmp_path_factory.mktemp("browser")) as start:
        yield start


@pytest.fixture
def dataset(tmp_path) -> Path:
    """A recording of 5, 7 and 4 frames at 10 per second, without thoughts."""
    return record(tmp_path / "dataset")
