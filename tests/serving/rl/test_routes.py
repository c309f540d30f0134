"""A run of reinforcement learning over HTTP: episodes, rewards, policies; with a policy whose answers are known."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from rl_robot import Robot, publish, states, until

from syvla.serving.client.http_client import http_act
from syvla.serving.client.retries import ClientOptions, PolicyError
from syvla.serving.client.rl_client import RLClient
from syvla.serving.rl.ledger import STATES, Ledger
from syvla.serving.rl.progress import RunSize
from syvla.serving.rl.published_policies import point_latest, read_published
from syvla.serving.rl.scheduler import RLSettings
from syvla.training.rl.rollout_store import LeRobotRolloutStore


def test_an_episode_from_its_beginning_to_its_label(serve_run, run):
    robot = Robot(serve_run())
    begun = robot.call("/rl/episodes", {"request_id": "one"})
    name = begun["episode_id"]
    assert (begun["policy_version"], begun["version"]) == ("hash 0", 0)
    assert robot.call("/rl/episodes", {"request_id": "one"})["episode_id"] == name, "the same beginning, sent again"
    reply = robot.act(name)
    assert (reply["policy_version"], reply["chunk_id"]) == ("hash 0", f"{name}:0")
    robot.act(name, seed=4, executed_steps=2, session_id="robot")
    store = LeRobotRolloutStore(run / "rollouts")
    assert (states(robot)["open"], store.labeled()) == (1, [])
    ended = robot.call(f"/rl/episodes/{name}/end", {"executed_steps": 5, "timed_out": True})
    assert (ended["state"], ended["decisions"]) == ("awaiting_reward", 2)
    assert robot.call(f"/rl/episodes/{name}/end", {})["state"] == "awaiting_reward", "the same end, sent again"
    assert states(robot)["awaiting_reward"] == 1
    assert store.labeled() == [], "unlabeled, it waits"
    shown = robot.call(f"/rl/episodes/{name}")
    assert (shown["instruction"], shown["outcome"], len(shown["frames"])) == ("lift", None, 2)
    assert shown["frames"][0]["center"].startswith("data:image/jpeg;base64,")
    assert robot.call(f"/rl/episodes/{name}/reward", {"reward": 1})["state"] == "sealed"
    (facts,) = store.labeled()
    assert (facts.episode_id, facts.outcome, facts.policy_versions, facts.timed_out) == (name, 1, ("hash 0",), True)
    (rollout,) = store.load([name])
    assert [d.valid.sum() for d in rollout.decisions] == [2, 5]
    np.testing.assert_array_equal(rollout.decisions[1].chunk[:, 0], 4 + np.arange(6))
    assert store.load([name])[0].decisions[0].images["center"][0, 0, 0] == 3
    trainer = Ledger(run)
    trainer.claim(0, [name])
    assert states(robot)["claimed"] == 1
    status, text = robot.refused(f"/rl/episodes/{name}/reward", {"reward": 0, "override": True})
    assert (status, "update 1 works on it" in text) == (409, True)
    trainer.consume(0, [name])
    assert states(robot)["consumed"] == 1
    assert robot.refused(f"/rl/episodes/{name}/reward", {"reward": 0, "override": True})[0] == 409, "it has trained"


def test_a_repeated_request_gets_the_chunk_that_was_recorded(serve_run, run, monkeypatch):
    """The answer is lost after the server has recorded it; no seed was given."""
    answers = []

    def losing(*args, **kwargs):
        answers.append(http_act(*args, **kwargs))
        if len(answers) == 1:
            raise ConnectionResetError("the answer was lost")
        return answers[-1]

    monkeypatch.setattr("syvla.serving.client.rl_client.http_act", losing)
    client = RLClient(f"http://{serve_run().url}", options=ClientOptions(retries=1, backoff=0.01))
    client.begin()
    reply = client.act({"center": np.zeros((8, 8, 3), np.uint8)}, np.zeros(2, np.float32), "lift")
    assert len(answers) == 2
    client.end(3)
    client.reward(1)
    store = LeRobotRolloutStore(run / "rollouts")
    (decision,) = store.load([client.episode_id])[0].decisions
    np.testing.assert_array_equal(decision.chunk, reply["actions"])


def test_requests_outside_of_episodes_leave_no_trace(serve_run, run):
    robot = Robot(serve_run())
    assert "chunk_id" not in robot.act(None, session_id="evaluation")
    assert not list((run / "rollouts").glob("[!.]*"))


@pytest.mark.parametrize("value", [2, -1, 0.5, 1.0, True, "1", None])
def test_other_rewards_are_refused(serve_run, value):
    robot = Robot(serve_run())
    name = robot.rollout()
    status, text = robot.refused(f"/rl/episodes/{name}/reward", {"reward": value})
    assert status == 422
    assert "reward: expected 1 (success) or 0 (failure)" in text
    assert states(robot)["awaiting_reward"] == 1


def test_repeated_and_conflicting_rewards(serve_run):
    robot = Robot(serve_run())
    name = robot.begin()
    path = f"/rl/episodes/{name}/reward"
    assert robot.refused(path, {"reward": 1})[0] == 409, "it is not over"
    robot.act(name)
    robot.call(f"/rl/episodes/{name}/end", {})
    replies = []
    threads = [
        threading.Thread(target=lambda: replies.append(robot.call(path, {"reward": 0})["state"])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == ["sealed"] * 4
    status, text = robot.refused(path, {"reward": 1})
    assert (status, "already labeled 0, got 1" in text) == (409, True)
    assert robot.call(path, {"reward": 1, "override": True})["state"] == "sealed"
    assert robot.call(f"/rl/episodes/{name}")["outcome"] == 1
    assert robot.refused(f"/rl/episodes/{name}/abort", {})[0] == 409
    assert robot.refused("/rl/episodes/other/reward", {"reward": 1})[0] == 404


def test_whether_a_zero_means_failure_is_the_word_of_who_labels(serve_run, run):
    """Left out it is what the robot said at the end; on the page F is failure, T that only the time was up."""
    server = serve_run()
    robot = Robot(server)
    names = []
    for said, labeled in ((True, None), (True, False), (False, None), (False, True)):
        name = robot.begin()
        robot.act(name)
        robot.call(f"/rl/episodes/{name}/end", {"timed_out": said})
        label = {"reward": 0} if labeled is None else {"reward": 0, "timed_out": labeled}
        robot.call(f"/rl/episodes/{name}/reward", label)
        assert robot.call(f"/rl/episodes/{name}/reward", label)["state"] == "sealed", "the same label, sent again"
        names.append(name)
    wanted = [True, False, False, True]
    assert [info.timed_out for info in LeRobotRolloutStore(run / "rollouts").labeled()] == wanted
    status, text = robot.refused(f"/rl/episodes/{names[1]}/reward", {"reward": 0, "timed_out": True})
    assert (status, "already labeled 0 (timed_out false), got 0 (timed_out true)" in text) == (409, True)
    assert robot.refused(f"/rl/episodes/{names[0]}/reward", {"reward": 0, "timed_out": 1})[0] == 422
    server.stop()
    facts = run / "rollouts" / names[1] / "meta" / "rollouts" / "episode-000000.json"
    facts.write_text(facts.read_text()[:20])
    serve_run()
    assert [info.timed_out for info in LeRobotRolloutStore(run / "rollouts").labeled()] == wanted, "from the journal"


def test_aborted_episodes_stop_their_robot(serve_run, run):
    robot = Robot(serve_run())
    name, waiting = robot.begin(), robot.rollout()
    robot.act(name)
    assert robot.call(f"/rl/episodes/{name}/abort", {"reason": "it fell"})["state"] == "aborted"
    status, text = robot.refused(f"/rl/episodes/{name}/end", {})
    assert (status, "it fell" in text) == (410, True)
    with pytest.raises(PolicyError, match="aborted: it fell; stop") as error:
        robot.act(name)
    assert error.value.status == 410
    robot.call(f"/rl/episodes/{waiting}/abort", {})
    assert states(robot) == {**dict.fromkeys(STATES, 0), "aborted": 2}
    assert not list((run / "rollouts").glob("[!.]*"))
    assert robot.refused(f"/rl/episodes/{robot.begin()}/end", {})[0] == 409, "nothing was asked in it"


def test_the_episode_of_a_silent_robot_is_aborted(serve_run):
    robot = Robot(serve_run(silent_s=0.3))
    name = robot.begin()
    until(lambda: states(robot)["aborted"] == 1)
    assert robot.refused(f"/rl/episodes/{name}/end", {})[0] == 410


def test_a_lease_is_short_and_every_request_renews_it(serve_run, monkeypatch):
    assert RLSettings(Path("run")).silent_s == 30
    later = 0.0
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda real=time.monotonic: real() + later})
    server = serve_run()
    monkeypatch.setattr("syvla.serving.rl.episodes.time", clock)
    robot, dead = Robot(server), Robot(server)
    name, silent = robot.begin(), dead.begin()
    for _ in range(3):
        later += 20.0
        robot.act(name)
    until(lambda: states(robot)["aborted"] == 1)
    assert dead.refused(f"/rl/episodes/{silent}/end", {})[0] == 410
    assert states(robot)["open"] == 1


def test_a_reward_that_comes_twice_in_one_message_is_refused(serve_run):
    server = serve_run()
    url = f"http://{server.url}/rl/episodes/any/reward"
    answer = httpx.post(url, content=b'{"reward": 1, "reward": 0}', headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (422, "reward: expected once, got it several times")


def test_no_more_rollouts_than_an_update_takes(serve_run, run):
    robot = Robot(serve_run(rollouts_per_update=2, max_updates=1))
    first, second = robot.rollout(), robot.rollout()
    status, text = robot.refused("/rl/episodes", {})
    assert (status, "has its 2 rollouts, of which 2 wait for a reward" in text) == (503, True)
    robot.call(f"/rl/episodes/{second}/abort", {})
    name = robot.begin()
    Ledger(run).consume(0, [first])
    assert robot.call("/rl/status")["updates"] == 1
    robot.act(name)
    robot.call(f"/rl/episodes/{name}/end", {})
    status, text = robot.refused("/rl/episodes", {})
    assert (status, "all 1 updates are done" in text) == (409, True)


def test_the_trainer_says_how_many_rollouts_it_wants(serve_run, run):
    robot = Robot(serve_run())
    assert (robot.call("/rl/status")["rollouts_per_update"], robot.call("/rl/status")["max_updates"]) == (20, 10)
    RunSize(rollouts_per_update=1, max_updates=3).save(run)
    until(lambda: robot.call("/rl/status")["max_updates"] == 3)
    robot.rollout()
    assert "has its 1 rollouts" in robot.refused("/rl/episodes", {})[1]
    RunSize(rollouts_per_update=2, max_updates=3).save(run)
    until(lambda: robot.call("/rl/status")["rollouts_per_update"] == 2)
    robot.rollout()
    (run / "rl_run.json").write_text('{"rollouts_per_update": -1}')
    time.sleep(0.2)
    assert robot.call("/rl/status")["rollouts_per_update"] == 2, "damaged, it changes nothing"


def test_a_server_that_makes_too_few_rollouts_says_so(serve_run, run):
    """The trainer would wait for ever."""
    robot = Robot(serve_run(rollouts_per_update=2))
    text = "at most 2 are made per update, the trainer waits for 5; raise --rl-rollouts"
    for wanted, said in ((5, True), (2, False)):
        RunSize(rollouts_per_update=wanted).save(run)
        until(lambda said=said: any(text in note for note in robot.call("/rl/status")["notes"]) == said)


def test_a_stopped_server_is_found_again(serve_run, run):
    server = serve_run()
    robot = Robot(server)
    waiting, labeled, still_open = robot.rollout(), robot.rollout(), robot.begin()
    robot.call(f"/rl/episodes/{labeled}/reward", {"reward": 0})
    with pytest.raises(RuntimeError, match="another server serves this run"):
        serve_run()
    server.stop()
    with (run / "journal.jsonl").open("a") as file:
        file.write('{"event": "rew')
    robot = Robot(serve_run())
    notes = " ".join(robot.call("/rl/status")["notes"])
    assert "cut off by a crash and are passed over" in notes
    assert "recovered 1 labeled rollout(s) and 1 that wait for a reward" in notes
    assert robot.refused(f"/rl/episodes/{still_open}/end", {})[0] == 410
    assert robot.call(f"/rl/episodes/{waiting}/reward", {"reward": 1})["state"] == "sealed"
    assert len(LeRobotRolloutStore(run / "rollouts").labeled()) == 2


def test_damaged_rollouts_are_set_aside_and_lost_labels_restored(serve_run, run):
    server = serve_run()
    robot = Robot(server)
    names = [robot.rollout() for _ in range(4)]
    for reward, name in enumerate(names[:2]):
        robot.call(f"/rl/episodes/{name}/reward", {"reward": reward})
    server.stop()
    cut = next((run / "rollouts" / names[3] / "data").rglob("*.parquet"))
    cut.write_bytes(cut.read_bytes()[:-100])
    facts = run / "rollouts" / names[1] / "meta" / "rollouts" / "episode-000000.json"
    facts.write_text(facts.read_text()[:20])
    assert [i.episode_id for i in LeRobotRolloutStore(run / "rollouts").labeled()] == names[:1], "left out till then"
    robot = Robot(serve_run())
    notes = " ".join(robot.call("/rl/status")["notes"])
    assert f"episode {names[3]}: damaged (data/" in notes
    assert f"episode {names[1]}: its facts were damaged and are restored; reward 1" in notes
    assert robot.refused(f"/rl/episodes/{names[3]}/reward", {"reward": 1})[0] == 410
    found = {info.episode_id: info.outcome for info in LeRobotRolloutStore(run / "rollouts").labeled()}
    assert found == {names[0]: 0, names[1]: 1}


def test_the_store_leaves_out_a_damaged_rollout(serve_run, run, caplog):
    robot = Robot(serve_run())
    names = [robot.rollout() for _ in range(2)]
    for name in names:
        robot.call(f"/rl/episodes/{name}/reward", {"reward": 1})
    cut = next((run / "rollouts" / names[1] / "data").rglob("*.parquet"))
    cut.write_bytes(cut.read_bytes()[:-100])
    assert [info.episode_id for info in LeRobotRolloutStore(run / "rollouts").labeled()] == names[:1]
    assert "is damaged and left out" in caplog.text


def test_the_token_guards_the_run(serve_run):
    server = serve_run(token="secret")
    stranger = Robot(server)
    for path in ("/rl/status", "/rl/episodes/x"):
        assert stranger.refused(path)[0] == 401
    for path in ("/rl/episodes", "/rl/policy", "/rl/rollback", "/rl/episodes/x/reward", "/rl/episodes/x/end"):
        assert stranger.refused(path, {})[0] == 401
    robot = Robot(server, "secret")
    assert robot.call(f"/rl/episodes/{robot.rollout()}/reward", {"reward": 1})["state"] == "sealed"


def test_bad_bodies_are_refused(serve_run):
    robot = Robot(serve_run())
    name = robot.begin()
    robot.act(name)
    for body in ([], {"executed_steps": "2"}, {"executed_steps": True}, {"executed_steps": 99}, {"timed": 1}):
        assert robot.refused(f"/rl/episodes/{name}/end", body)[0] == 422
    assert robot.call(f"/rl/episodes/{name}/end", {"executed_steps": 6})["state"] == "awaiting_reward"


def test_limits_of_a_run_are_checked():
    with pytest.raises(ValueError, match="rollouts_per_update: expected at least 1, got 0"):
        RLSettings(Path("run"), rollouts_per_update=0)


def test_a_rollout_that_nobody_can_judge_is_discarded_and_can_come_back(serve_run, run):
    server = serve_run(rollouts_per_update=2)
    robot = Robot(server)
    first, second, running = robot.rollout(), robot.rollout(), None
    robot.call(f"/rl/episodes/{second}/reward", {"reward": 1})
    for name in (first, second):
        assert robot.call(f"/rl/episodes/{name}/discard", {"reason": "the camera fell"})["state"] == "discarded"
        assert robot.call(f"/rl/episodes/{name}/discard", {})["state"] == "discarded", "sent again"
    assert LeRobotRolloutStore(run / "rollouts").labeled() == []
    running = robot.begin()
    assert robot.refused(f"/rl/episodes/{running}/discard", {})[0] == 409, "it is open"
    robot.call(f"/rl/episodes/{running}/abort", {})
    assert robot.refused(f"/rl/episodes/{running}/discard", {})[0] == 410
    assert robot.refused(f"/rl/episodes/{first}/reward", {"reward": 1})[0] == 409
    assert len(robot.call(f"/rl/episodes/{first}")["frames"]) == 1, "it can still be looked at"
    server.stop()
    robot = Robot(serve_run())
    listed = robot.call("/rl/status")["discarded"]
    assert [(e["episode_id"], e["why"]) for e in listed] == [(name, "the camera fell") for name in (first, second)]
    assert robot.call(f"/rl/episodes/{first}/restore", {})["state"] == "awaiting_reward"
    assert robot.call(f"/rl/episodes/{second}/restore", {})["state"] == "sealed"
    assert robot.refused(f"/rl/episodes/{second}/restore", {})[0] == 409
    assert [facts.episode_id for facts in LeRobotRolloutStore(run / "rollouts").labeled()] == [second]
    Ledger(run).claim(0, [second])
    status, text = robot.refused(f"/rl/episodes/{second}/discard", {})
    assert (status, "update 1 works on it" in text) == (409, True)


def test_what_the_trainer_set_aside_is_shown_with_the_reason_and_can_be_used_after_all(serve_run, run):
    robot = Robot(serve_run())
    name = robot.rollout()
    robot.call(f"/rl/episodes/{name}/reward", {"reward": 1})
    Ledger(run).set_aside(name, "too old: 1 version(s) behind")
    status = robot.call("/rl/status")
    assert (status["episodes"]["set_aside"], status["set_aside"][0]["why"]) == (1, "too old: 1 version(s) behind")
    assert robot.call(f"/rl/episodes/{name}")["why"] == "too old: 1 version(s) behind"
    assert robot.call(f"/rl/episodes/{name}/restore", {})["state"] == "sealed"
    assert Ledger(run).read().rollouts[name].accepted


def test_a_task_without_demonstrations_is_refused_before_anything_is_collected(serve_run, run):
    RunSize(instructions=("lift", "place")).save(run)
    server = serve_run()
    robot = Robot(server)
    name = robot.begin()
    robot.act(name)
    with pytest.raises(PolicyError, match=r"no demonstrations of 'push', only of \['lift', 'place'\]") as error:
        robot.act(name, prompt="push")
    assert error.value.status == 422
    robot.act(name, prompt="place", executed_steps=6)
    assert "chunk_id" not in robot.act(None, prompt="push"), "outside of episodes anything may be asked"


def test_a_rollback_goes_back_in_the_line_of_the_trainer_and_stays(serve_run, run):
    """The trainer's ledger knows the line; `LATEST.json`, which a late trainer may have written over, does not count."""
    trainer = Ledger(run)
    for version in range(3):
        trainer.announce(version, f"hash {version}", version - 1 if version else None)
        publish(run, version)
    server = serve_run()
    robot = Robot(server)
    assert robot.call("/rl/status")["policy"]["serving"] == "v0002"
    name = robot.begin()
    assert robot.call("/rl/rollback", {}) == {"version": 1, "policy_version": "hash 1"}
    status, text = robot.refused("/rl/episodes", {})
    assert (status, "policy v0001: comes next" in text) == (503, True), "from the answer on"
    robot.call(f"/rl/episodes/{name}/abort", {})
    until(lambda: robot.call("/rl/status")["policy"]["serving"] == "v0001")
    point_latest(run / "policies", read_published(run / "policies", "v0002"))
    assert robot.act(robot.begin())["policy_version"] == "hash 1"
    server.stop()
    robot = Robot(serve_run())
    assert robot.call("/rl/status")["policy"]["serving"] == "v0001", "also after a restart"
    trainer.announce(3, "hash 3", 1)
    publish(run, 3)
    until(lambda: robot.call("/rl/status")["policy"]["serving"] == "v0003")
    assert robot.call("/rl/rollback", {})["version"] == 1, "not 2, which the run has left"
    assert robot.call("/rl/policy", {"version": "v0002"})["version"] == 2, "but by its name"
    assert trainer.read().lineage == [0, 1, 2]
    publish(run, 7, latest=False)
    assert robot.refused("/rl/policy", {"version": "v0007"})[0] == 422, "no trainer announced it"


def test_no_rollouts_are_made_in_vain_of_the_policy_before_one_that_cannot_be_served(serve_run, run):
    trainer = Ledger(run)
    trainer.announce(0, "hash 0")
    robot = Robot(serve_run())
    weights = publish(run, 1) / "model.safetensors"
    weights.write_bytes(b"")
    trainer.announce(1, "hash 1", 0)
    until(lambda: robot.call("/rl/status")["policy"]["refused"])
    status, text = robot.refused("/rl/episodes", {})
    assert (status, "policy v0001: cannot be served" in text, "POST /rl/rollback" in text) == (409, True, True)
    robot.call("/rl/rollback", {})
    assert robot.act(robot.begin())["policy_version"] == "hash 0"


def test_no_more_rollouts_than_the_trainer_can_use(serve_run, run):
    """Those beyond would be too old for the next update: labeled, and of no use."""
    RunSize(rollouts_per_update=1).save(run)
    robot = Robot(serve_run(rollouts_per_update=2, ahead=3))
    robot.rollout()
    assert "has its 1 rollouts" in robot.refused("/rl/episodes", {})[1]
    assert any("--rl-rollouts 2 is more than the trainer takes" in note for note in robot.call("/rl/status")["notes"])
    RunSize(rollouts_per_update=1, max_staleness=1).save(run)
    until(lambda: robot.call("/rl/episodes", {})["episode_id"] if allowed(robot) else False)


def allowed(robot):
    try:
        robot.rollout()
    except PolicyError:
        return False
    return True
