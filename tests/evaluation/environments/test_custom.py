"""Environments named "module:Class": the example is evaluated and recorded; what is wrong with one is named."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reach_environment import ReachEnvironment

from syvla.evaluation import closed_loop
from syvla.evaluation.environments import find_backend, make_environment
from syvla.evaluation.environments.custom import check_environment, is_custom

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "own_environment.py"


def run_in_examples(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-P", *arguments],  # -P: as an installed command, without the working directory on the path
        cwd=EXAMPLE.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_example_is_short_and_its_command_runs(tmp_path):
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) < 60
    command = re.search(r"^syvla-eval (.*)$", text, re.MULTILINE).group(1).split()
    options = ["--workers", "2", "--video-episodes", "1", "--quiet", "--output", str(tmp_path)]
    done = run_in_examples("-m", "syvla.evaluation.closed_loop", *command, *options)
    assert done.returncode == 0, done.stderr
    assert "near: 5/5" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["settings"]["env"] == "own_environment:PointReach"
    # 0.4 m away, at most 0.1 m per axis and step, and 0.05 m are close enough: 3 to 4 steps
    assert 3 <= summary["mean_steps_to_success"] <= 4
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 1


def test_the_example_is_recorded(tmp_path):
    pytest.importorskip("pyarrow")
    command = ["-m", "syvla.evaluation.demonstration_recording", "--env", "own_environment:PointReach", "--task", "all"]
    command += ["--episodes", "2", "--output", str(tmp_path / "data")]
    noisy = run_in_examples(*command, "--action-noise", "0.1")
    assert noisy.returncode == 1
    assert "PointReach lacks max_step_motion" in noisy.stderr
    done = run_in_examples(*command)
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "data" / "meta" / "info.json").read_text())
    assert (info["total_episodes"], info["fps"], info["robot_type"]) == (4, 10, "point")


@pytest.mark.parametrize("name", ["module:Class", "a.b.c:D"])
def test_the_form_of_a_name(name):
    assert is_custom(name)
    assert find_backend(name).environment == name


@pytest.mark.parametrize("name", ["tabletop", "a/b.py:C", "a:b:c", ":C", "a:", "http://x:1"])
def test_other_forms_are_no_names(name, capsys):
    assert not is_custom(name)
    if name != "tabletop":
        with pytest.raises(ValueError, match="or module:Class of your own"):
            find_backend(name)
        with pytest.raises(SystemExit):
            closed_loop.main(["--model", "expert", "--env", name])


def test_what_cannot_be_imported_is_named(monkeypatch, tmp_path):
    with pytest.raises(ImportError, match=r"needs nowhere_at_all; run: pip install what the module imports"):
        make_environment("nowhere_at_all:Class", "near")
    with pytest.raises(ValueError, match="module json has no 'Nothing'"):
        make_environment("json:Nothing", "near")
    with pytest.raises(ValueError, match="expected a class whose constructor takes task"):
        make_environment("fractions:Fraction", "near")


class Changed(ReachEnvironment):
    """One thing is wrong at a time; pictures are plain arrays."""

    def observation(self):
        return {"images": {"top": self.render_camera("top", 8, 8)}, "state": super().observation()["state"]}


def wrong_observation(key, value):
    def observation(self):
        right = Changed.observation(self)
        return {**right, key: value}

    return {"observation": observation}


def wrong_info(key, value):
    return {"info": lambda self: {**ReachEnvironment.info(self), key: value}}


def forgetful(self, *, seed=None, options=None):
    """Keeps the position that the last episode ended at."""
    before = getattr(self, "position", np.zeros(2)) + 0.01
    ReachEnvironment.reset(self, seed=seed)
    self.position = before
    return self.observation(), self.info()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"view_cameras": {"front": "top"}}, r"view_cameras: expected some of center"),
        ({"view_cameras": {"center": "bottom"}}, r"each with one of the cameras \['top'\]"),
        ({"action_names": ("dx",)}, r"action_space: expected a Box of shape \(1,\)"),
        ({"state_names": ("x", "y")}, r"observation\['state'\]: expected 2 finite numbers, which are x, y; got"),
        ({"control_hz": 0.0}, "expected control_hz > 0"),
        (wrong_observation("images", [1]), r"observation: expected \{\"images\""),
        (
            wrong_observation("images", {"top": np.zeros((8, 8, 3))}),
            r"expected uint8 \(H, W, 3\), got float64 \(8, 8, 3\)",
        ),
        (wrong_observation("images", {"top": np.zeros((3, 8, 8), np.uint8)}), r"expected uint8 \(H, W, 3\), got uint8"),
        (wrong_observation("images", {}), "got object"),
        (wrong_observation("state", np.full(4, np.nan)), "expected 4 finite numbers"),
        (wrong_info("instruction", None), r"info\['instruction'\]: expected a text, got None"),
        (wrong_info("success", "no"), r"info\['success'\]: expected True or False"),
        ({"reset": lambda self, **_: {}}, r"reset: expected \(observation, info\), got dict"),
        ({"reset": forgetful}, r"reset\(seed=0\) gives another state the second time"),
    ],
)
def test_what_is_wrong_with_an_environment_is_named(wrong, message):
    environment = type("Wrong", (Changed,), wrong)()
    with pytest.raises(ValueError, match=message):
        check_environment("my:Env", environment)


def test_missing_attributes_are_listed_with_their_meaning():
    with pytest.raises(ValueError, match=r"lacks embodiment \(a name\), .*control_hz \(control steps per second\)"):
        check_environment("my:Env", object())
    check_environment("my:Env", Changed())
