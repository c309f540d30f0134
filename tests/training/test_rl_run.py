"""A whole run as real processes: server, worker and simulated robot, each of them killed on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from killed_processes import killed_at, script_killed_at
from launching import launch
from ports import reserved_port
from safetensors.torch import load_file

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel, SyVLAValueConfig, SyVLAValueModel
from syvla.processing import RobotDataset, build_tiny_processor
from syvla.serving.client.http_client import http_json
from syvla.serving.rl.ledger import CONSUMED, Ledger
from syvla.serving.rl.published_policies import read_latest
from syvla.training.retrieval.demonstrations import human_frames

pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Demonstrations of the tabletop, a policy and a value model of random weights that fit them."""
    from syvla.evaluation.demonstration_recording import record_demonstrations
    from syvla.training.rl.value_fit import write_fit

    folder = tmp_path_factory.mktemp("parts")
    record_demonstrations(folder / "demonstrations", episodes=3, tasks=("lift",))
    dataset = RobotDataset(folder / "demonstrations", embodiment="tabletop")
    size = {"state_dim": dataset.state_dim, "action_dim": dataset.action_dim}
    config = SyVLAConfig.tiny(embodiments={"tabletop": size})
    torch.manual_seed(0)
    SyVLAModel(config).save_pretrained(folder / "policy")
    processor = build_tiny_processor(config)
    processor.set_embodiment("tabletop", dataset.statistics())
    processor.save_pretrained(folder / "policy")
    SyVLAValueModel(SyVLAValueConfig.tiny(embodiments={"tabletop": size})).save_pretrained(folder / "value")
    write_fit(folder / "value", processor, {"gamma": 0.99}, ["tabletop"])
    return folder


def state_of(folder):
    return json.loads((folder / "rollout_state.json").read_text())


class Processes:
    """Server, worker and robot of one run. Each may be told to die at a moment, see `killed_at`."""

    def __init__(self, run, parts, port):
        self.run, self.parts, self.port, self.running = run, parts, port, []
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, name, module, die_at=None, command=None, **options):
        if command is None:
            command = [sys.executable, "-m", module] if die_at is None else killed_at(module, *die_at)
        arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        with (self.run / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [*command, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.running.append((name, process))
        return process

    def server(self, die_at=None, updates=2):
        options = {"rl-run": self.run, "port": self.port, "rl-rollouts": 3, "rl-updates": updates}
        return self.start("server", "syvla.serving.serve_command", die_at, **options)

    def robot(self, **more):
        options = {"url": self.url, "env-option": "max_steps=10", "replan-steps": 4, "output": self.run / "robot.json"}
        options |= more
        return self.start("robot", "syvla.evaluation.simulated_robot", **options)

    def training(self, **more):
        """Options of the trainer."""
        return {
            "model_path": self.parts / "policy",
            "value_model_path": self.parts / "value",
            "robot_datasets": self.parts / "demonstrations",
            "output_dir": self.run,
            "expert_mode": "random",
            "same_task": False,
            "rollouts_per_update": 3,
            "max_rl_updates": 2,
            "steps_per_update": 6,
            "per_device_train_batch_size": 4,
            "num_flow_samples": 2,
            "guard_heldout_cfm": 1000,
            "target_kl": 0,
            "value_fit_max_steps": 0,
            "min_advantage_spread": 0,
            "guard_samples": 4,
            "poll_seconds": 0.2,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 20,
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            **more,
        }

    def worker(self, die_at=None, **more):
        return self.start("worker", "syvla.training.ppo", die_at, **self.training(**more))

    def two_workers(self, name="worker", script=ROOT / "training" / "ppo.py", **more):
        """One job of two processes, for one update; the process that is returned is its launcher."""
        command = [sys.executable, "-m", *launch(2), str(script)]
        return self.start(name, "syvla.training.ppo", command=command, **self.training(max_rl_updates=1, **more))

    def log(self, name):
        return (self.run / f"{name}.log").read_text() if (self.run / f"{name}.log").is_file() else ""

    def wait(self, condition, seconds=600):
        deadline = time.monotonic() + seconds
        while not condition():
            logs = {name: self.log(name)[-2000:] for name in ("server", "worker", "robot")}
            assert time.monotonic() < deadline, logs
            dead = [name for name, process in self.running if process.poll() not in (None, 0, -signal.SIGKILL)]
            assert not dead, (dead, logs)
            time.sleep(0.02)

    def died(self, process):
        self.wait(lambda: process.poll() is not None)
        assert process.returncode == -signal.SIGKILL, "it ended before its moment"

    def events(self, kind):
        path = self.run / "journal.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        found = [json.loads(line) for line in lines if line.endswith(b"\n")]
        return [event for event in found if event["event"] == kind]

    def open_episodes(self):
        over = {event["episode_id"] for kind in ("end", "abort") for event in self.events(kind)}
        return [event["episode_id"] for event in self.events("begin") if event["episode_id"] not in over]


@pytest.fixture
def processes(parts, tmp_path):
    with reserved_port() as port:
        made = Processes(tmp_path, parts, port)
        yield made
        for _, process in made.running:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children():
                    child.kill()
                process.kill()
                process.wait()


def test_a_run_survives_the_death_of_its_server_and_its_worker(processes):
    run = processes.run
    in_third_rollout = "sum(e.state == 'sealed' for e in args[0].episodes.values()) == 2"
    in_third_step = "args[0].state.global_step == 2"
    server = processes.server(("syvla.serving.rl.episodes:RLEpisodes.observe", in_third_rollout))
    worker = processes.worker(("syvla.training.rl.trainer:SyVLAPPOTrainer.compute_loss", in_third_step))
    robot = processes.robot()

    # kill -9 of the Scheduler during a rollout, and its newest sealed rollout cut short
    processes.died(server)
    (interrupted,) = processes.open_episodes()
    kept, cut = [event["episode_id"] for event in processes.events("reward")][:2]
    data = next((run / "rollouts" / cut / "data").rglob("*.parquet"))
    data.write_bytes(data.read_bytes()[:-64])
    server = processes.server()
    processes.wait(lambda: f"episode {cut}: damaged" in processes.log("server"))
    aborted = f"episode {interrupted}: was open when the server ended; aborted"
    processes.wait(lambda: aborted in processes.log("server"))
    assert (run / "rollouts" / kept / "seal.json").is_file()

    # kill -9 of the Worker during an update, then while it saves
    processes.died(worker)
    assert (run / "checkpoint-2").is_dir()
    worker = processes.worker(("syvla.training.run.checkpoints:publish", "args[1].name == 'checkpoint-5'"))
    processes.died(worker)
    assert (run / "_unfinished" / "checkpoint-5" / "config.json").is_file()
    assert not (run / "checkpoint-5").exists()
    worker = processes.worker()
    processes.wait(lambda: worker.poll() == 0)
    processes.wait(lambda: robot.poll() == 0)
    assert "continuing" in processes.log("worker")

    # nothing sealed is lost, none is used twice, what is served is what was published
    state = state_of(run)
    history = json.loads((run / "rl_history.json").read_text())
    assert [update["version"] for update in history] == [1, 2]
    assert len(state["consumed"]) == len(set(state["consumed"])) == 6
    assert kept in state["consumed"]
    assert not {cut, interrupted} & set(state["consumed"])
    latest = read_latest(run / "policies")
    latest.verify()
    processes.wait(lambda: http_json(processes.url, "/rl/status")["policy"]["serving"] == "v0002")
    status = http_json(processes.url, "/rl/status")
    assert (status["policy"]["policy_version"], status["policy"]["refused"]) == (state["versions"][-1], {})
    assert (status["episodes"]["consumed"], status["updates"]) == (6, 2)
    assert any("recovered" in note for note in status["notes"])
    assert {event["policy_version"] for event in processes.events("begin")} <= set(state["versions"])
    assert [event["version"] for event in processes.events("serve")] == ["v0001", "v0002"]
    rollouts = json.loads((run / "robot.json").read_text())["episodes"]
    assert {entry["episode_id"] for entry in rollouts} >= set(state["consumed"])
    server.terminate()
    assert server.wait(timeout=300) == 0


def test_a_rollback_holds_for_server_and_trainer_whoever_dies(processes):
    """Back to version 1 while version 2 acts; the worker is killed before it can follow, and then the server."""
    run, trainer = processes.run, Ledger(processes.run)
    server, robot = processes.server(updates=3), processes.robot()
    worker = processes.start("worker", "syvla.training.ppo", **processes.training(max_rl_updates=3, steps_per_update=2))
    processes.wait(lambda: (run / "policies" / "v0002").is_dir() and trainer.read().current == 2)
    worker.kill()
    processes.died(worker)
    went_back = http_json(processes.url, "/rl/rollback", {"version": "v0001"})
    versions = trainer.read().versions
    assert went_back == {"version": 1, "policy_version": versions[1]}
    server.kill()
    processes.died(server)
    server = processes.server(updates=3)
    worker = processes.start("worker", "syvla.training.ppo", **processes.training(max_rl_updates=3, steps_per_update=2))
    processes.wait(lambda: worker.poll() == 0 and robot.poll() == 0)
    known, state = trainer.read(), state_of(run)
    assert known.lineage == state["lineage"] == [0, 1, 3]
    assert known.versions[:3] == versions, "its number is not given again"
    assert "going back from version 2 to version 1" in processes.log("worker")
    processes.wait(lambda: http_json(processes.url, "/rl/status")["policy"]["serving"] == "v0003")
    status = http_json(processes.url, "/rl/status")["episodes"]
    assert (status["consumed"], status["claimed"], status["sealed"]) == (9, 0, 0), "every label is used or set aside"
    used = {known.rollouts[name].policy_version for name in known.names(CONSUMED)}
    assert used == {versions[0], versions[1]}, "the third update learned from rollouts of version 1"
    server.terminate()
    assert server.wait(timeout=300) == 0


def test_two_workers_share_a_run_and_the_death_of_one_costs_nothing(processes):
    """One job of two processes learns from the server's rollouts. When one dies the job ends; started again it ends as a job
    does that was never touched, bit for bit."""
    run, script = processes.run, processes.run / "dying.py"
    third_step_of_one = "os.environ['RANK'] == '1' and args[0].state.global_step == 2"
    trainer = "syvla.training.rl.trainer:SyVLAPPOTrainer.compute_loss"
    script.write_text(script_killed_at("syvla.training.ppo", trainer, third_step_of_one))
    server, robot, job = processes.server(updates=1), processes.robot(), processes.two_workers(script=script)
    processes.running.pop()
    assert job.wait(timeout=600) not in (0, -signal.SIGKILL), "the launcher says that a process died"
    assert f"exitcode  : {-signal.SIGKILL}" in processes.log("worker")
    assert (run / "checkpoint-2").is_dir()
    assert not (run / "policies" / "v0001").exists()
    job = processes.two_workers()
    processes.wait(lambda: job.poll() == 0 and robot.poll() == 0)
    assert "continuing" in processes.log("worker")
    processes.wait(lambda: http_json(processes.url, "/rl/status")["policy"]["serving"] == "v0001")
    server.terminate()
    assert server.wait(timeout=300) == 0

    # the same sealed rollouts, by two processes that live
    state, untouched = state_of(run), run / "untouched"
    for name in state["consumed"]:
        shutil.copytree(run / "rollouts" / name, untouched / "rollouts" / name)
    job = processes.two_workers("untouched", output_dir=untouched, save_strategy="no")
    processes.wait(lambda: job.poll() == 0)
    assert state_of(untouched)["versions"] == state["versions"]
    assert sorted(state_of(untouched)["consumed"]) == sorted(state["consumed"])
    for name in ("model.safetensors", "value_model/model.safetensors"):
        mine, theirs = load_file(run / name), load_file(untouched / name)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_dagger_learns_from_the_expert_that_takes_over(processes):
    """Server, trainer and robot: the policy of random weights gets nowhere, the expert lifts, and its commands are imitated."""
    run = processes.run
    server = processes.server(updates=1)
    options = {"objective": "dagger", "max_rl_updates": 1, "steps_per_update": 3, "correction_share": 1.0}
    worker = processes.worker(**options, learning_rate=1e-3)
    robot = processes.robot(**{"env-option": "max_steps=40", "takeover-after": 6})
    processes.wait(lambda: worker.poll() == 0 and robot.poll() == 0)
    server.terminate()
    records = json.loads((run / "robot.json").read_text())["episodes"]
    assert [(one["takeover"], one["success"], one["finished"]) for one in records] == [(6, False, True)] * 3
    (update,) = json.loads((run / "rl_history.json").read_text())
    corrected = sum(one["steps"] - 6 for one in records)
    assert (update["objective/takeover_rate"], update["objective/success_rate"]) == (1.0, 0.0)
    assert (update["corrections/frames"], update["corrections/share"]) == (corrected, 1.0)
    assert (update["version"], update["refused"]) == (1, None)
    rollouts = [RobotDataset(folder, embodiment="tabletop") for folder in sorted((run / "rollouts").glob("[!.]*"))]
    assert sum(human_frames(dataset).sum() for dataset in rollouts) == corrected
    assert read_latest(run / "policies").version == 1
