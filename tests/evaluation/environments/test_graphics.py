"""OpenGL: EGL without a display, a message that names packages and variable where it does not work."""

import os
import subprocess
import sys

import pytest
from simulators import ROOT

from syvla.evaluation.environments.graphics import choose_gl

MAKE = "from syvla.evaluation.environments import make_environment; make_environment('metaworld', 'push-v3')"


def run(code, **variables):
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "variables",
    [{"MUJOCO_GL": "bogus"}, {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "glx"}, {"MUJOCO_GL": "disabled"}],
)
def test_broken_graphics_name_the_packages_and_the_variable(variables):
    pytest.importorskip("mujoco")
    result = run(MAKE, **variables)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "GraphicsUnavailableError" in last
    for hint in ("apt-get install -y libegl1 libgl1-mesa-dri libopengl0", "MUJOCO_GL", "tabletop"):
        assert hint in last


def test_egl_is_chosen_only_without_display_and_wish(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for variable in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.setenv(variable, "")  # so that the variable is put back afterwards
        monkeypatch.delenv(variable)
    monkeypatch.setenv("DISPLAY", ":0")
    assert choose_gl() == ""
    monkeypatch.delenv("DISPLAY")
    assert choose_gl() == os.environ["MUJOCO_GL"] == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert choose_gl() == "osmesa"


def test_a_missing_simulator_names_its_install_command():
    blocked = "import sys; sys.modules['metaworld'] = None\n" + MAKE
    pytest.importorskip("mujoco")
    result = run(blocked)
    assert "environment 'metaworld' needs metaworld; run: pip install 'syvla[metaworld]'" in result.stderr


def test_the_other_back_ends_import_without_torch():
    """They run in environments of their own, beside a policy server."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from syvla.evaluation.environments import ENVIRONMENTS, make_environment\n"
        "import syvla.evaluation.closed_loop, syvla.evaluation.environments.libero.tasks\n"
        "print(len(ENVIRONMENTS))"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
