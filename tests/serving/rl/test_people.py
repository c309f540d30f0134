"""People in a run of reinforcement learning: they take over, stop an episode, and look at what happened."""

from types import SimpleNamespace

import numpy as np
import pytest
from rl_robot import Robot

from syvla.serving.client.http_client import http_act
from syvla.serving.client.retries import ClientOptions, PolicyError
from syvla.serving.client.rl_client import EpisodeAborted, RLClient
from syvla.training.rl.rollout_store import LeRobotRolloutStore


def test_a_person_takes_over_in_a_rollout(serve_run, run):
    """Over HTTP, with bad corrections in between, which cost nothing."""
    client = RLClient(f"http://{serve_run().url}", options=ClientOptions(retries=1, backoff=0.01))
    client.begin()
    images, state = {"center": np.zeros((8, 8, 3), np.uint8)}, np.zeros(2, np.float32)
    client.act(images, state, "lift")
    client.observe(images, state, "lift")
    with pytest.raises(PolicyError, match=r"action: expected shape \(2,\) as the policy's actions have, got \(3,\)"):
        client.correct(images, state, "lift", np.zeros(3))
    with pytest.raises(PolicyError, match="action: expected finite numbers"):
        client.correct(images, state, "lift", np.array([np.inf, 0]))
    for step in range(3):
        client.correct(images, state, "lift", np.array([step, -step]))
    client.act(images, state, "lift")
    client.end(4)
    client.reward(1)
    (rollout,) = LeRobotRolloutStore(run / "rollouts").load([client.episode_id])
    assert [(d.executed, d.taken_over, d.control_step) for d in rollout.decisions] == [(2, True, 0), (4, False, 5)]
    assert [one.commands.tolist() for one in rollout.corrections] == [
        [[0, 0], [1, -1], [2, -2]],
        [[1, -1], [2, -2]],
        [[2, -2]],
    ]
    assert not any(one.ends_episode for one in rollout.corrections)
    assert rollout.facts.corrections == 3


def test_an_observation_whose_answer_is_lost_is_recorded_once(serve_run, run, monkeypatch):
    answers = []

    def losing(*args, **kwargs):
        answers.append(http_act(*args, **kwargs))
        if len(answers) in (2, 4):
            raise ConnectionResetError("the answer was lost")
        return answers[-1]

    monkeypatch.setattr("syvla.serving.client.rl_client.http_act", losing)
    client = RLClient(f"http://{serve_run().url}", options=ClientOptions(retries=1, backoff=0.01))
    client.begin()
    images, state = {"center": np.zeros((8, 8, 3), np.uint8)}, np.zeros(2, np.float32)
    client.act(images, state, "lift")
    client.observe(images, state, "lift")
    client.correct(images, state, "lift", np.ones(2))
    assert len(answers) == 5
    client.end()
    client.reward(0)
    (rollout,) = LeRobotRolloutStore(run / "rollouts").load([client.episode_id])
    assert ([d.executed for d in rollout.decisions], len(rollout.corrections)) == ([2], 1)


def test_a_person_stops_a_running_episode_and_nothing_of_it_is_lost(serve_run, run):
    client = RLClient(f"http://{serve_run().url}", options=ClientOptions(retries=1, backoff=0.01))
    robot = SimpleNamespace(call=lambda path, body=None: client._post(path, body or {}))
    images, state = {"center": np.zeros((8, 8, 3), np.uint8)}, np.zeros(2, np.float32)
    name = client.begin()["episode_id"]
    client.act(images, state, "lift")
    client.observe(images, state, "lift")
    (shown,) = client.status()["running"]
    assert shown == {"episode_id": name, "instruction": "lift", "takeover": False}
    assert robot.call(f"/rl/episodes/{name}/stop")["state"] == "awaiting_reward"
    assert robot.call(f"/rl/episodes/{name}/stop")["state"] == "awaiting_reward", "pressed twice"
    for ask in (client.act, client.observe):
        with pytest.raises(EpisodeAborted, match="a person stopped it; stop the robot"):
            ask(images, state, "lift")
    assert client.end(1)["state"] == "awaiting_reward", "the robot's own word comes too late and harms nothing"
    assert client.status()["running"] == []
    client.reward(0, name)
    (rollout,) = LeRobotRolloutStore(run / "rollouts").load([name])
    assert (rollout.facts.ended, rollout.facts.timed_out) == ("stopped by a person", False)
    assert [(d.executed, d.executed_known) for d in rollout.decisions] == [(2, True)]
    empty = client.begin()["episode_id"]
    assert robot.call(f"/rl/episodes/{empty}/stop")["state"] == "aborted", "nothing was recorded yet"


def test_a_person_asks_for_the_robot(serve_run):
    client = RLClient(f"http://{serve_run().url}", options=ClientOptions(retries=1, backoff=0.01))
    images, state = {"center": np.zeros((8, 8, 3), np.uint8)}, np.zeros(2, np.float32)
    name = client.begin()["episode_id"]
    client.act(images, state, "lift")
    assert not client.takeover
    client._post(f"/rl/episodes/{name}/takeover", {"on": True})
    client.observe(images, state, "lift")
    assert client.takeover
    assert client.status()["running"][0]["takeover"]
    client.correct(images, state, "lift", np.ones(2))
    client._post(f"/rl/episodes/{name}/takeover", {"on": False})
    client.act(images, state, "lift")
    assert not client.takeover
    client.end(2)
    with pytest.raises(PolicyError, match="is over"):
        client._post(f"/rl/episodes/{name}/takeover", {"on": True})


def test_the_playback_shows_every_observation_with_thought_and_who_acted(serve_run):
    server = serve_run()
    robot, client = Robot(server), RLClient(f"http://{server.url}")
    images, state = {"center": np.zeros((8, 8, 3), np.uint8)}, np.zeros(2, np.float32)
    name = client.begin()["episode_id"]
    client.act(images, state, "lift", think=True)
    client.observe(images, state, "lift")
    client.correct(images, state, "lift", np.ones(2))
    client.act(images, state, "lift")
    client.end(1)
    played = robot.call(f"/rl/episodes/{name}/frames")
    assert (played["count"], played["fps"]) == (4, 10)
    assert [frame["human"] for frame in played["frames"]] == [False, False, True, False]
    thought = played["frames"][0]["thought"]
    assert thought.startswith("thought for lift")
    assert [frame["thought"] for frame in played["frames"]] == [thought, thought, "", ""]
    assert all(frame["views"]["center"].startswith("data:image/jpeg;base64,") for frame in played["frames"])
    assert len(robot.call(f"/rl/episodes/{name}/frames?first=3")["frames"]) == 1
    with pytest.raises(PolicyError, match="first: expected 0 to 4, got 5"):
        robot.call(f"/rl/episodes/{name}/frames?first=5")
    with pytest.raises(PolicyError, match="has no frames here"):
        robot.call("/rl/episodes/other/frames")


def test_people_grade_where_the_server_lets_them(serve_run, run):
    server = serve_run(graded_rewards=True)
    robot = Robot(server)
    names = [robot.rollout() for _ in range(3)]
    for value in (1.5, -0.1, True, "1", None, float("nan")):
        status, text = robot.refused(f"/rl/episodes/{names[0]}/reward", {"reward": value})
        assert status == 422
        assert "reward: expected a number from 0 (failure) to 1 (success)" in text
    for name, reward in zip(names, (0.25, 1, 0.75), strict=True):
        assert robot.call(f"/rl/episodes/{name}/reward", {"reward": reward})["state"] == "sealed"
    assert robot.call(f"/rl/episodes/{names[0]}/reward", {"reward": 0.25})["state"] == "sealed", "the same, sent again"
    assert robot.refused(f"/rl/episodes/{names[0]}/reward", {"reward": 0.5})[0] == 409
    store = LeRobotRolloutStore(run / "rollouts")
    assert {facts.episode_id: facts.outcome for facts in store.labeled()} == dict(
        zip(names, (0.25, 1, 0.75), strict=True)
    )
    assert [rollout.facts.outcome for rollout in store.load(names)] == [0.25, 1, 0.75]
    server.stop()
    facts = run / "rollouts" / names[0] / "meta" / "rollouts" / "episode-000000.json"
    facts.write_text(facts.read_text()[:20])
    serve_run()
    assert {one.episode_id: one.outcome for one in store.labeled()}[names[0]] == 0.25, "from the journal"


def test_a_rollout_that_is_discarded_while_it_is_read_is_read_where_it_went(serve_run, monkeypatch):
    import syvla.serving.rl.routes as routes

    robot = Robot(serve_run())
    name = robot.rollout()
    read, places = routes.last_frames, []

    def interrupted(folder, count):
        places.append(folder)
        if len(places) == 1:
            robot.call(f"/rl/episodes/{name}/discard", {})
        return read(folder, count)

    monkeypatch.setattr(routes, "last_frames", interrupted)
    assert len(robot.call(f"/rl/episodes/{name}")["frames"]) == 1
    assert len(places) == 2
    assert places[1].parent.name == ".discarded"
