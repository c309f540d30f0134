"""A server whose disk is full: what replies, `/metrics`, people and the exit status say. On a real file system that is full."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from ports import reserved_port
from rl_robot import Robot, publish, states, until
from small_disk import fill, small_disk

from syvla.serving.client.http_client import http_act, http_ready
from syvla.serving.client.retries import PolicyError
from syvla.serving.rl.ledger import Ledger

ROOT = Path(__file__).parents[2]
SERVE = """
import sys
import syvla.serving.serve_command as command
from served_policies import CountingPolicy
from syvla.serving.policy_server import PolicyServer
command._server = lambda arguments, settings: PolicyServer(CountingPolicy(), settings, record=arguments.record)
sys.exit(command.main())
"""


def request(number):
    image = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return {
        "observation.images.center": image,
        "observation.state": np.zeros(2, np.float32),
        "prompt": "lift",
        "session_id": "robot",
    }


def test_a_recording_that_ends_for_lack_of_room_is_told_everywhere(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"}
    with small_disk(tmp_path / "disk", "128k") as disk, reserved_port() as port:
        command = [sys.executable, "-c", SERVE, "--model", "none", "--record", str(disk / "set"), "--port", str(port)]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: http_ready(url), 120)
            first = http_act(url, request(0))
            assert {"episode_id", "chunk_id"} <= first.keys()
            for number in range(1, 200):
                reply = http_act(url, request(number))
                if "recording_error" in reply:
                    break
            assert re.fullmatch(
                rf"episode {first['episode_id']} is not recorded: OSError: .*No space left.*", reply["recording_error"]
            )
            assert not {"episode_id", "chunk_id"} & reply.keys(), "it is lost"
            assert reply["actions"].shape == (6, 2), "the robot goes on"
            page = httpx.get(f"{url}/metrics").text
            assert 'syvla_episodes_lost{cause="disk_full"} 1.0\n' in page
            assert 'syvla_episodes{state="lost"} 1.0\n' in page
        finally:
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "syvla-serve: 1 episode(s) could not be recorded" in error
        assert "No space left" in error


@pytest.fixture
def run(tmp_path):
    with small_disk(tmp_path / "disk", "512k") as disk:
        publish(disk, 0)
        yield disk


def test_a_run_without_room_stops_its_robot_and_loses_no_label(serve_run, run):
    server = serve_run()
    robot = Robot(server)
    waiting, name = robot.rollout(), robot.begin()
    robot.act(name)
    ballast = fill(run)

    def act_on():
        for seed in range(200):
            robot.act(name, seed=seed, executed_steps=6)

    def begin_on():
        for _ in range(100):  # the journal's last block has some room
            robot.call(f"/rl/episodes/{robot.begin()}/abort", {})

    with pytest.raises(PolicyError, match=r"was aborted: its recording was lost \(OSError.*No space left") as error:
        act_on()
    assert error.value.status == 410
    fill(run)
    with pytest.raises(PolicyError, match="disk: the run's folder cannot be written") as error:
        begin_on()
    assert error.value.status == 507
    status, text = robot.refused(f"/rl/episodes/{waiting}/reward", {"reward": 1})
    assert (status, "(No space left on device); free some space and send it again" in text) == (507, True)
    assert (states(robot)["awaiting_reward"], states(robot)["open"]) == (1, 0)
    assert 'syvla_episodes_lost{cause="disk_full"} 1.0\n' in httpx.get(f"http://{server.url}/metrics").text
    assert server.service.recording.lost.keys() == {name}
    ballast.unlink()
    robot.call(f"/rl/episodes/{waiting}/reward", {"reward": 1})
    known = Ledger(run).read().rollouts
    assert (known[waiting].reward, known[waiting].state) == (1, "sealed")
    facts = run / "rollouts" / waiting / "meta" / "rollouts" / "episode-000000.json"
    assert json.loads(facts.read_text())["outcome"] == 1
    robot.act(robot.begin())
