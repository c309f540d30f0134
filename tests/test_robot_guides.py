"""The guides in docs/robots: every command runs, in order, as it stands, on a small stand-in for the robot's recordings."""

import importlib
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from ports import reserved_port

from syvla.processing import RobotDatasetWriter
from syvla.serving.client.http_client import http_ready

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
SMALLER = {"--max_steps 20000": "--max_steps 2 --per_device_train_batch_size 4 --use_cpu true --logging_steps 1"}
"""What the test makes smaller; all else of a command stays."""


def commands(page: str) -> list[list[str]]:
    """Words of the commands of a page's bash blocks, without comments."""
    text = (ROOT / "docs" / "robots" / page).read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    for shown, tested in SMALLER.items():
        lines = [line.replace(shown, tested) for line in lines]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def record_so101(folder: Path) -> None:
    """Four episodes of 40 frames in LeRobot's numbers: five joints from -100 to 100, a gripper from 0 to 100."""
    names = [
        f"{joint}.pos"
        for joint in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    ]
    features = {
        f"observation.images.{camera}": {
            "dtype": "image",
            "shape": [48, 64, 3],
            "names": ["height", "width", "channels"],
        }
        for camera in ("front", "wrist")
    }
    features |= {key: {"dtype": "float32", "shape": [6], "names": names} for key in ("observation.state", "action")}
    rng = np.random.default_rng(0)
    with RobotDatasetWriter(folder, fps=30, features=features, robot_type="so101_follower") as writer:
        for _ in range(4):
            phase = rng.uniform(0, 6, 6)
            for step in range(40):
                path = 40 * np.sin(phase + 0.1 * np.arange(step, step + 2)[:, None]) + np.array([0, 0, 0, 0, 0, 50])
                frame = {
                    f"observation.images.{camera}": rng.integers(0, 255, (48, 64, 3), np.uint8)
                    for camera in ("front", "wrist")
                }
                frame |= {"observation.state": path[0].astype(np.float32), "action": path[1].astype(np.float32)}
                writer.add_frame(frame, task="pick up the block")
            writer.save_episode()


def serve_and_loop(serve: list[str], loop: list[str], folder: Path) -> str:
    """Runs the server's command on a free port, and beside it the robot's loop; returns what the loop said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    module = SCRIPTS[serve[0]].partition(":")[0]
    with reserved_port() as port:
        words = [str(port) if word == "8000" else word for word in serve[1:]]
        server = subprocess.Popen([sys.executable, "-m", module, *words], cwd=folder, env=environment)
        try:
            until = time.monotonic() + 300
            while not http_ready(f"http://127.0.0.1:{port}"):
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.2)
            words = [word.replace("8000", str(port)) for word in loop[1:]]
            done = subprocess.run(
                [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stderr
        finally:
            server.terminate()
            server.wait(120)


def record_franka(folder: Path) -> None:
    """Four episodes of 40 frames at 15 Hz: pose of the hand and opening as state, moves as actions."""
    names = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    cameras = ("exterior", "wrist")
    features = {
        f"observation.images.{camera}": {
            "dtype": "image",
            "shape": [48, 64, 3],
            "names": ["height", "width", "channels"],
        }
        for camera in cameras
    }
    for key, prefix in (("observation.state", ""), ("action", "d_")):
        features[key] = {"dtype": "float32", "shape": [7], "names": [prefix + name for name in names[:6]] + ["gripper"]}
    rng = np.random.default_rng(0)
    with RobotDatasetWriter(folder, fps=15, features=features, robot_type="franka") as writer:
        for _ in range(4):
            pose = 0.2 * np.sin(rng.uniform(0, 6, 6) + 0.08 * np.arange(41)[:, None])
            opening = 0.04 + 0.04 * np.sin(0.2 * np.arange(41))
            for step in range(40):
                frame = {
                    f"observation.images.{camera}": rng.integers(0, 255, (48, 64, 3), np.uint8) for camera in cameras
                }
                frame["observation.state"] = np.append(pose[step], opening[step]).astype(np.float32)
                frame["action"] = np.append(pose[step + 1] - pose[step], opening[step + 1]).astype(np.float32)
                writer.add_frame(frame, task="put the cup on the shelf")
            writer.save_episode()


def record_aloha(folder: Path) -> None:
    """Three HDF5 files of 60 frames, as ACT's recorder writes them: 14 positions, three cameras."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'syvla[convert]'")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for episode in range(3):
        path = 0.5 * np.sin(rng.uniform(0, 6, 14) + 0.05 * np.arange(61)[:, None])
        with h5py.File(folder / f"episode_{episode}.hdf5", "w") as file:
            file["observations/qpos"], file["action"] = path[:-1].astype(np.float32), path[1:].astype(np.float32)
            for camera in ("cam_high", "cam_left_wrist", "cam_right_wrist"):
                file[f"observations/images/{camera}"] = rng.integers(0, 255, (60, 48, 64, 3), np.uint8)


GUIDES = {
    "so101.md": (record_so101, "so101", ["syvla-clean", "syvla-new", "syvla-finetune", "syvla-openloop"]),
    "franka.md": (record_franka, "franka", ["syvla-clean", "syvla-new", "syvla-finetune", "syvla-openloop"]),
    "aloha.md": (
        record_aloha,
        "aloha",
        ["syvla-convert", "syvla-clean", "syvla-new", "syvla-finetune", "syvla-openloop"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES)
def test_from_recording_to_closed_loop(tmp_path, monkeypatch, capsys, page):
    record, name, expected = GUIDES[page]
    record(tmp_path / "recordings" / name)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    *offline, serve, loop = commands(page)
    assert [words[0] for words in offline] == expected
    assert [serve[0], loop[:2]] == ["syvla-serve", ["python", "examples/robot_loop.py"]]
    for words in offline:
        module, _, function = SCRIPTS[words[0]].partition(":")
        status = getattr(importlib.import_module(module), function)(words[1:])
        assert status == 0, f"{words}\n{capsys.readouterr()}"
    said = serve_and_loop(serve, loop, tmp_path)
    refused = [line for line in said.splitlines() if "does not follow the policy" in line]
    assert all("no answer after" in line for line in refused), (
        "a busy machine may be late; nothing else stops the robot"
    )


def test_every_guide_is_run():
    assert {path.name for path in (ROOT / "docs" / "robots").glob("*.md")} == set(GUIDES)
