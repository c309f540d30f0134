"""Pages in a real browser, Chromium or Chrome, without a window.

What a page looks like when its test ends is kept in `outputs/screenshots/`, for a person to look at.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from rl_robot import until

SCREENSHOTS = Path(__file__).resolve().parents[2] / "outputs" / "screenshots"


class Page:
    """A page in a browser without a window, driven by the browser's own debugging protocol."""

    def __init__(self, profile, held):
        from websockets.sync.client import connect

        port = profile / "DevToolsActivePort"
        until(lambda: port.is_file() and port.read_text().count("\n") == 1, 60)
        listing = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"
        with urllib.request.urlopen(listing, timeout=30) as reply:
            (page,) = [target for target in json.load(reply) if target["type"] == "page"]
        self.socket, self.count = (
            held.enter_context(connect(page["webSocketDebuggerUrl"], open_timeout=30, max_size=None)),
            0,
        )

    def call(self, method, **parameters):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while (reply := json.loads(self.socket.recv(timeout=30))).get("id") != self.count:
            pass
        return reply["result"]

    def value(self, expression):
        return self.call("Runtime.evaluate", expression=expression)["result"].get("value")

    def press(self, key, when):
        until(lambda: self.value(when), 30)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


def keep(page, number):
    """Saves the page under the name of the test that runs. A browser that a test has ended shows nothing more."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "page").partition(" ")[0]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", test.removeprefix("tests/"))
    with suppress(OSError, KeyError, ValueError):
        page.screenshot(SCREENSHOTS / f"{name}{f'-{number}' if number else ''}.png")


@contextmanager
def browsers(make_folder):
    """Opens addresses in browsers of their own: `open_page(url) -> Page`; all are closed at the end.

    Args:
        make_folder: Makes an empty folder.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium or google-chrome is not installed")
    held, pages = ExitStack(), []

    def start(url, *more):
        profile = make_folder()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", *more]
        command = [program, *options, f"--user-data-dir={profile}", url]
        environment = {**os.environ, "HOME": str(profile)}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        held.callback(process.wait)
        held.callback(process.kill)
        page = Page(profile, held)
        held.callback(keep, page, len(pages))
        pages.append(page)
        return page

    with held:
        yield start
