"""The simulated robot against a server of a run: what it sends is what is recorded, and its rewarder labels it."""

import json

import numpy as np
import pytest
from served_policies import CountingPolicy

pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

from syvla.evaluation.environments import make_environment, make_expert
from syvla.evaluation.simulated_robot import ROLLOUT_SEED_OFFSET, RobotOptions, main, run_episode
from syvla.serving import PolicyServer, RLClient
from syvla.serving.rl.published_policies import point_latest, publish_policy
from syvla.serving.rl.scheduler import RLScheduler, RLSettings
from syvla.serving.server.settings import ServerSettings
from syvla.training.rl.rollout_store import LeRobotRolloutStore


class StillPolicy(CountingPolicy):
    """For the tabletop's robot: holds all joints at 0."""

    def metadata(self):
        (entry,) = super().metadata()["embodiments"].values()
        return {**super().metadata(), "embodiments": {"tabletop": {**entry, "action_names": None}}}

    def answer(self, requests):
        answers = super().answer(requests)
        for answer in answers:
            answer.actions *= 0
        return answers


@pytest.fixture
def run(tmp_path):
    policies = tmp_path / "policies"
    point_latest(
        policies, publish_policy(policies, 0, "hash 0", lambda f: (f / "model.safetensors").write_bytes(b"weights"))
    )
    return tmp_path


@pytest.fixture
def server(run):
    scheduler = RLScheduler(RLSettings(run, rollouts_per_update=2), lambda folder: StillPolicy(dim=14))
    with PolicyServer(None, ServerSettings(port=0), rl=scheduler).start(20) as started:
        yield started


def test_a_rollout_holds_every_observation_and_its_label(server, run):
    environment = make_environment("tabletop", "lift", max_steps=6)
    client = RLClient(f"http://{server.url}")
    record = run_episode(client, environment, ROLLOUT_SEED_OFFSET, RobotOptions(replan_steps=4))
    assert (record["success"], record["steps"], record["version"]) == (False, 6, 0)
    store = LeRobotRolloutStore(run / "rollouts")
    (info,) = store.labeled()
    assert (info.outcome, info.timed_out) == (0, True)
    (rollout,) = store.load([record["episode_id"]])
    assert [decision.valid.sum() for decision in rollout.decisions] == [4, 2]
    observation, _ = environment.reset(seed=ROLLOUT_SEED_OFFSET)
    first = rollout.decisions[0].images
    for view, camera in environment.view_cameras.items():
        np.testing.assert_array_equal(first[view], observation["images"][camera])
    for _ in range(6):
        observation, *_ = environment.step(np.zeros(14, np.float32))
    np.testing.assert_allclose(rollout.final.state, observation["state"], atol=1e-6)
    environment.close()


def test_the_command_makes_rollouts_and_may_leave_the_labels(server, run, tmp_path, capsys):
    options = ["--url", f"http://{server.url}", "--env-option", "max_steps=3", "--replan-steps", "4"]
    output = ["--output", str(tmp_path / "robot.json")]
    assert main([*options, "--episodes", "1", *output]) == 0
    assert json.loads(capsys.readouterr().out) == {"rollouts": 1, "success": {"0": [0, 1]}}
    assert main([*options, "--episodes", "1", "--no-label"]) == 0
    client = RLClient(f"http://{server.url}")
    assert client.status()["episodes"]["awaiting_reward"] == 1
    assert main([*options, "--wait-s", "0.1"]) == 1, "the update has its rollouts"
    assert "no episode could begin within 0.1 s" in capsys.readouterr().err
    store = LeRobotRolloutStore(run / "rollouts")
    assert len(store.labeled()) == 1, "unlabeled, the other one waits"
    (waiting,) = client.status()["queue"]
    assert client.reward(1, waiting["episode_id"])["state"] == "sealed"
    assert [info.outcome for info in store.labeled()] == [0, 1]
    assert main([*options, "--seed", "-1"]) == 1


def test_the_expert_takes_over_and_every_command_of_it_is_a_correction(server, run):
    environment = make_environment("tabletop", "lift", max_steps=40)
    client = RLClient(f"http://{server.url}")
    options = RobotOptions(replan_steps=4, takeover_after=6)
    record = run_episode(client, environment, ROLLOUT_SEED_OFFSET, options)
    assert (record["takeover"], record["success"], record["finished"]) == (6, False, True)
    (rollout,) = LeRobotRolloutStore(run / "rollouts").load([record["episode_id"]])
    assert [(d.executed, d.taken_over) for d in rollout.decisions] == [(4, False), (2, True)]
    assert len(rollout.corrections) == rollout.facts.corrections == record["steps"] - 6
    assert all(one.ends_episode for one in rollout.corrections)
    observation, _ = environment.reset(seed=ROLLOUT_SEED_OFFSET)
    expert = make_expert(environment)
    for _ in range(6):
        observation, *_ = environment.step(np.zeros(14, np.float32))
    expert.reset()
    for one in rollout.corrections[:5]:
        np.testing.assert_allclose(one.state, observation["state"], atol=1e-6)
        command, _ = expert.act()
        np.testing.assert_allclose(one.commands[0], command, atol=1e-6)
        observation, *_ = environment.step(command)
    environment.close()
