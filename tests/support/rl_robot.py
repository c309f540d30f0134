"""What tests of a run of reinforcement learning over HTTP share: its policies, a robot, and patience."""

import json
import time

import numpy as np
import pytest

import syvla.processing.robot_data.robot_dataset  # noqa: F401  loaded now: a request for a rollout's frames waits 30 s
from syvla.serving.client.http_client import http_act, http_json
from syvla.serving.client.retries import PolicyError
from syvla.serving.rl.published_policies import point_latest, publish_policy


def publish(run, version, weights=b"weights", latest=True):
    """Publishes a policy of made-up weights, named in `LATEST.json` if `latest`; returns its folder."""

    def save(folder):
        (folder / "model.safetensors").write_bytes(weights + b" %d" % version)
        (folder / "config.json").write_text(json.dumps({"version": version}))

    policy = publish_policy(run / "policies", version, f"hash {version}", save)
    if latest:
        point_latest(run / "policies", policy)
    return policy.folder


class Robot:
    def __init__(self, server, token=None):
        self.url, self.token = f"http://{server.url}", token

    def call(self, path, body=None):
        return http_json(self.url, path, body, token=self.token)

    def refused(self, path, body=None):
        with pytest.raises(PolicyError) as error:
            self.call(path, body)
        return error.value.status, str(error.value)

    def begin(self):
        return self.call("/rl/episodes", {})["episode_id"]

    def act(self, episode, seed=3, **more):
        request = {
            "observation.images.center": np.full((8, 8, 3), seed, np.uint8),
            "observation.state": np.zeros(2, np.float32),
            "prompt": "lift",
            "seed": seed,
            "episode_id": episode,
            **more,
        }
        return http_act(self.url, request, token=self.token)

    def rollout(self):
        name = self.begin()
        self.act(name)
        self.call(f"/rl/episodes/{name}/end", {"executed_steps": 4})
        return name


def states(robot):
    return robot.call("/rl/status")["episodes"]


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
