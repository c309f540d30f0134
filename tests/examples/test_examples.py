"""The examples run as they stand, as processes of their own, against a real server with a tiny checkpoint."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ports import reserved_port

from syvla.serving.client.command_log import read_log
from syvla.serving.client.http_client import http_ready
from syvla.serving.recording.reader import read_rollouts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    import torch

    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
    from syvla.processing import build_tiny_processor

    folder = tmp_path_factory.mktemp("checkpoint")
    config = SyVLAConfig.tiny()
    processor = build_tiny_processor(config)
    statistics = {"mean": np.zeros(14), "std": np.full(14, 0.1)}
    processor.set_embodiment("tabletop", {"state": statistics, "action": statistics}, control_hz=20.0)
    torch.manual_seed(0)
    SyVLAModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    """(port, folder of the recording) of a server that records."""
    recording = tmp_path_factory.mktemp("served") / "rollouts"
    with reserved_port() as port:
        command = [sys.executable, "-m", "syvla.serving.serve_command", "--model", str(checkpoint), "--port", str(port)]
        process = subprocess.Popen([*command, "--record", str(recording)], cwd=ROOT)
        try:
            until = time.monotonic() + 300
            while not http_ready(f"http://127.0.0.1:{port}"):
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.2)
            yield port, recording
        finally:
            process.terminate()
            process.wait(120)


def run(example: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / example), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_openpi_client_closes_the_loop_with_the_demo_environment(server):
    pytest.importorskip("openpi_client", reason="scripts/install_test_peers.sh installs it")
    pytest.importorskip("mujoco")
    port, recording = server
    out = run("closed_loop_openpi_client.py", "--port", str(port), "--episodes", "2", "--max-steps", "12")
    assert "of 2 episodes solved" in out
    until = time.monotonic() + 120
    while not (recording / "meta" / "info.json").is_file() or not (episodes := read_rollouts(recording)):
        assert time.monotonic() < until
        time.sleep(0.1)
    first = episodes[0]  # the second one's reset ended it
    assert len(first.decisions) == 3  # 12 steps, 4 of each chunk
    assert "cube" in first.facts.instruction


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", ["0", "2", "measured"])
def test_robot_loop_runs(server, prefetch, tmp_path):
    port, _ = server
    options = ["--url", f"ws://127.0.0.1:{port}", "--steps", "20", "--hz", "10", "--prefetch", prefetch]
    options += ["--seams", "rtc", "--dry-run", "--log", str(tmp_path / "log.jsonl")] if prefetch == "2" else []
    assert "20 steps done" in run("robot_loop.py", "lift the red cube", *options)
    if prefetch == "2":
        steps = list(read_log(tmp_path / "log.jsonl"))
        assert len(steps) == 20
        assert not any(step.sent for step in steps)


def test_the_recorded_arm_is_a_dataset_of_two_cameras_at_30_hz(tmp_path):
    pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")
    from syvla.processing import RobotDataset

    script = str(ROOT / "examples" / "single_arm_dataset.py")
    command = [sys.executable, script, "--episodes", "1", "--image-size", "32", "--output", str(tmp_path / "arm")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    dataset = RobotDataset(tmp_path / "arm", embodiment="arm", chunk_size=4)
    assert (dataset.fps, dataset.num_episodes, dataset.state_dim, dataset.action_dim) == (30, 1, 7, 7)
    assert set(dataset.cameras.values()) == {"observation.images.front", "observation.images.wrist"}
    assert dataset.action_names[-1] == "gripper"
    assert np.abs(np.diff(dataset.states, axis=0)).max() > 0.01, "the arm moves"
