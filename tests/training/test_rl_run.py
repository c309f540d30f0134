"""A whole run as real processes: server, worker and simulated robot, each of them killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killed_processes import killed_at
from ports import reserved_port

from modeling_syvla import SyVLAConfig, SyVLAModel, SyVLAValueConfig, SyVLAValueModel
from processing import RobotDataset, build_tiny_processor
from serving.http_client import http_json
from serving.published_policies import read_latest

pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Demonstrations of the tabletop, a policy and a value model of random weights that fit them."""
    from evaluation.record_demonstrations import record_demonstrations
    from training.value_fit import write_fit

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


class Processes:
    """Server, worker and robot of one run. Each may be told to die at a moment, see `killed_at`."""

    def __init__(self, run, parts, port):
        self.run, self.parts, self.port, self.running = run, parts, port, []
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, name, module, die_at=None, **options):
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

    def server(self, die_at=None):
        options = {"rl-run": self.run, "port": self.port, "rl-rollouts": 3, "rl-updates": 2}
        return self.start("server", "serving.serve_command", die_at, **options)

    def robot(self):
        options = {"url": self.url, "env-option": "max_steps=10", "replan-steps": 4, "output": self.run / "robot.json"}
        return self.start("robot", "evaluation.simulated_robot", **options)

    def worker(self, die_at=None):
        return self.start(
            "worker",
            "training.ppo",
            die_at,
            model_path=self.parts / "policy",
            value_model_path=self.parts / "value",
            robot_datasets=self.parts / "demonstrations",
            output_dir=self.run,
            expert_mode="random",
            same_task=False,
            rollouts_per_update=3,
            max_rl_updates=2,
            steps_per_update=6,
            per_device_train_batch_size=4,
            num_flow_samples=2,
            guard_heldout_cfm=1000,
            target_kl=0,
            guard_samples=4,
            poll_seconds=0.2,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=20,
            logging_steps=1,
            use_cpu=True,
            disable_tqdm=True,
        )

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
                process.kill()
                process.wait()


def test_a_run_survives_the_death_of_its_server_and_its_worker(processes):
    run = processes.run
    in_third_rollout = "sum(e.state == 'sealed' for e in args[0].episodes.values()) == 2"
    in_third_step = "args[0].state.global_step == 2"
    server = processes.server(("serving.rl_episodes:RLEpisodes.observe", in_third_rollout))
    worker = processes.worker(("training.ppo_trainer:SyVLAPPOTrainer.compute_loss", in_third_step))
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
    worker = processes.worker(("training.ppo_trainer:put_checkpoint", "args[1] == 5"))
    processes.died(worker)
    assert (run / ".saving" / "checkpoint-5" / "config.json").is_file()
    assert not (run / "checkpoint-5").exists()
    worker = processes.worker()
    processes.wait(lambda: worker.poll() == 0)
    processes.wait(lambda: robot.poll() == 0)
    assert "going on with" in processes.log("worker")

    # nothing sealed is lost, none is used twice, what is served is what was published
    state = json.loads((run / "rollout_state.json").read_text())
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
