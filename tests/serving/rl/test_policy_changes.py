"""Which published policy acts in which episode: swaps, rollbacks, damaged policies, the first one."""

import json

from rl_robot import Robot, publish, until
from served_policies import CountingPolicy

from syvla.serving import PolicyServer
from syvla.serving.rl.ledger import Ledger
from syvla.serving.rl.published_policies import LATEST, point_latest, read_published
from syvla.serving.rl.scheduler import RLScheduler, RLSettings
from syvla.serving.server.settings import ServerSettings


def test_policies_change_between_episodes_alone(serve_run, run):
    robot = Robot(serve_run())
    name = robot.begin()
    publish(run, 1)
    until(lambda: robot.call("/rl/status")["policy"]["pending"] == "v0001")
    status, text = robot.refused("/rl/episodes", {})
    assert (status, "no further episode of v0000 begins" in text) == (503, True)
    assert robot.act(name)["policy_version"] == "hash 0"
    robot.call(f"/rl/episodes/{name}/end", {})
    until(lambda: robot.call("/rl/status")["policy"]["serving"] == "v0001")
    assert robot.act(robot.begin())["policy_version"] == "hash 1"


def test_no_episode_begins_with_a_policy_that_an_update_has_left_behind(serve_run, run):
    """Its rollout would be too old. The policy is announced, then written, then found and loaded by the server."""
    trainer = Ledger(run)
    trainer.announce(0, "hash 0")
    robot = Robot(serve_run(poll_s=3600.0))
    robot.rollout()
    trainer.announce(1, "hash 1")
    for written in (False, True):
        if written:
            publish(run, 1)
        status, text = robot.refused("/rl/episodes", {})
        assert (status, "policy v0001: comes next" in text) == (503, True), "at once, without a look at the folder"


def test_the_announced_policy_acts_as_soon_as_it_is_published(serve_run, run):
    trainer = Ledger(run)
    trainer.announce(0, "hash 0")
    robot = Robot(serve_run())
    trainer.announce(1, "hash 1")
    publish(run, 1)
    until(lambda: robot.call("/rl/status")["policy"]["serving"] == "v0001")
    assert robot.act(robot.begin())["policy_version"] == "hash 1"


def test_publish_and_rollback(serve_run, run):
    robot = Robot(serve_run())
    publish(run, 1, latest=False)
    assert robot.call("/rl/policy", {"version": "v0001"}) == {"version": 1, "policy_version": "hash 1"}
    until(lambda: robot.call("/rl/status")["policy"]["serving"] == "v0001")
    assert robot.call("/rl/rollback", {})["version"] == 0
    until(lambda: robot.call("/rl/status")["policy"]["serving"] == "v0000")
    assert json.loads((run / "policies" / LATEST).read_text())["version"] == 0, "a restart serves it as well"
    assert robot.refused("/rl/rollback", {})[0] == 409
    for bad in ("../policies/v0001", "/etc", "v0009", "", "latest"):
        assert robot.refused("/rl/policy", {"version": bad})[0] == 422
    events = [json.loads(line)["event"] for line in (run / "journal.jsonl").read_text().splitlines()]
    assert events == ["policy", "serve", "policy", "serve"]


def test_half_and_foreign_policies_are_refused(serve_run, run):
    robot = Robot(serve_run())
    folder = publish(run, 1, latest=False)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:3])
    status, text = robot.refused("/rl/policy", {"version": "v0001"})
    assert (status, "half written or damaged" in text) == (422, True)
    point_latest(run / "policies", read_published(run / "policies", "v0001"))
    until(lambda: robot.call("/rl/status")["policy"]["refused"])
    name = robot.begin()
    assert robot.act(name)["policy_version"] == "hash 0", "the one before goes on"
    robot.call(f"/rl/episodes/{name}/abort", {})
    weights.write_bytes(whole)
    robot.call("/rl/policy", {"version": "v0001"})
    until(lambda: robot.call("/rl/status")["policy"]["serving"] == "v0001")
    (run / "policies" / LATEST).write_text("{")
    until(lambda: "LATEST" in robot.call("/rl/status")["policy"]["refused"])


def test_a_restart_serves_the_newest_whole_policy_and_says_so(serve_run, run):
    weights = publish(run, 1) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    robot = Robot(serve_run())
    status = robot.call("/rl/status")
    assert status["policy"]["serving"] == "v0000"
    assert "serving v0000 instead" in status["notes"][0]


def test_it_waits_for_the_first_policy(tmp_path):
    scheduler = RLScheduler(RLSettings(tmp_path, poll_s=0.05), lambda folder: CountingPolicy())
    with PolicyServer(None, ServerSettings(port=0), rl=scheduler).start(wait=False) as server:
        robot = Robot(server)
        status, text = robot.refused("/rl/status")
        assert (status, "start syvla-ppo" in text) == (503, True)
        publish(tmp_path, 0)
        until(lambda: server.service.ready)
        assert robot.call("/rl/status")["policy"]["serving"] == "v0000"
