"""The page in Chromium, clicked through as a person would; Gradio runs in the environment of `make play`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser import browsers
from ports import reserved_port
from rl_robot import until

ROOT = Path(__file__).resolve().parents[3]


def interpreter() -> str:
    """A Python that has Gradio, or a skip."""
    own = ROOT / ".venv-play" / "bin" / "python"
    if find_spec("gradio"):
        return sys.executable
    if not own.exists():
        pytest.skip("Gradio needs an older pillow than the tests: `make play` makes its environment, .venv-play")
    return str(own)


@pytest.fixture
def address(tmp_path):
    """The page's address; the server ends with the test."""
    command = [interpreter(), "-m", "syvla.evaluation.play.command", "--no-browser", "--port", "0"]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "pictures"), "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            until(lambda: process.poll() is not None or "open http" in (tmp_path / "log").read_text(), 300)
            text = (tmp_path / "log").read_text()
            assert "open http" in text, text
            yield text.split("open ")[1].split()[0]
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_the_files_of_a_space_are_enough(tmp_path):
    """`python app.py`, as a Space runs it, in a folder of its own with the checkpoint beside it."""
    shutil.copytree(ROOT / "integrations" / "space", tmp_path / "space")
    shutil.copytree(ROOT / "checkpoints" / "tabletop-lift", tmp_path / "space" / "checkpoint")
    with reserved_port() as port:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_SERVER_PORT": str(port)}
        environment["GRADIO_TEMP_DIR"] = str(tmp_path / "pictures")
        process = subprocess.Popen([interpreter(), "app.py"], cwd=tmp_path / "space", env=environment)
        try:
            until(lambda: process.poll() is not None or answers(port), 300)
            assert "SyVLA on a simulated table" in answers(port)
        finally:
            process.kill()
            process.wait()


def answers(port: int) -> str:
    """The page's text, empty while nothing answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as reply:
            return reply.read().decode()
    except OSError:
        return ""


@pytest.mark.slow
def test_a_person_plays(address, tmp_path):
    with browsers(lambda: Path(tempfile.mkdtemp(dir=tmp_path))) as start:
        page = start(address, "--window-size=1400,1250")

        def text(name):
            return page.value(f"document.querySelector('#{name}')?.innerText ?? ''")

        def press(name):
            page.value(f"document.querySelector('#{name}').click()")

        instruction = "document.querySelector('#instruction textarea')?.value ?? ''"
        until(lambda: page.value(instruction).startswith("lift the "), 120)
        assert text("state") == "waiting"

        press("run")
        until(lambda: text("thought").strip().startswith("reach"), 120)
        until(lambda: page.value("document.querySelectorAll('#decoupling td').length >= 16"), 120)
        assert page.value("document.querySelectorAll('#joints svg').length") == 14
        assert "view center" in text("attention")
        press("stop")
        until(lambda: text("state") in ("waiting", "lifted"), 60)

        press("draw")
        until(lambda: "step 0" in text("status"), 60)
        place = text("status").split("cube at ")[1]
        box = json.loads(page.value("JSON.stringify(document.querySelector('#head img').getBoundingClientRect())"))
        where = {"x": box["left"] + 0.3 * box["width"], "y": box["top"] + 0.4 * box["height"]}
        for kind in ("mousePressed", "mouseReleased"):
            page.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)
        until(lambda: text("status").split("cube at ")[1] != place, 60)
        assert "y +" in text("status"), "left of the picture is the robot's left"
        page.screenshot(tmp_path / "play.png")
