"""`syvla-ppo` as real processes: killed in an update, killed while saving, and two at once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killed_processes import killed_at
from launching import launch
from rl_robot import until
from safetensors.torch import load_file

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")

from syvla.serving.rl.ledger import CLAIMED, CONSUMED, SET_ASIDE, Ledger
from syvla.training.ppo import main

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "training" / "ppo.py"
pytestmark = pytest.mark.slow


NOTE_PUBLICATIONS = """
import os, sys
import torch
from syvla.training.rl.policy_publisher import FolderPublisher
from syvla.training.ppo import main

publish = FolderPublisher.publish

def noted(self, version, *rest):
    with open(os.environ["PUBLICATIONS"], "a") as log:
        log.write(f"{os.environ['RANK']} {version}\\n")
    publish(self, version, *rest)

FolderPublisher.publish = noted
status = main()
assert not torch.distributed.is_initialized(), "each process has left the group"
sys.exit(status)
"""


@pytest.fixture
def start(rl_options, tmp_path):
    """`start(output, **options) -> process` of one or several workers, with a log beside the output.

    All are ended before `tmp_path` goes.
    """
    running = []

    def run(output, processes=1, command=(sys.executable, str(SCRIPT)), **more):
        if processes > 1:
            command = [sys.executable, "-m", *launch(processes), *command[1:]]
        arguments = [
            text for name, v in {**rl_options, "output_dir": output, **more}.items() for text in (f"--{name}", str(v))
        ]
        output.mkdir(parents=True, exist_ok=True)
        log = (output / "worker.log").open("a")
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def run_here(rl_options):
    """The same in this process, to the end."""

    def run(output, **more):
        assert (
            main([text for n, v in {**rl_options, "output_dir": output, **more}.items() for text in (f"--{n}", str(v))])
            == 0
        )

    return run


def finish(process, output):
    assert process.wait(timeout=600) == 0, (output / "worker.log").read_text()[-3000:]


def die(process, output):
    assert process.wait(timeout=600) == -signal.SIGKILL, (output / "worker.log").read_text()[-3000:]


def result(output):
    weights = load_file(output / "model.safetensors"), load_file(output / "value_model" / "model.safetensors")
    return weights, json.loads((output / "rl_history.json").read_text())


def test_kills_lose_no_rollout_and_train_none_twice(start, run_here, tmp_path):
    """kill -9 in the middle of an update, then in the middle of a save; the run ends as one that was never touched."""
    options = {"steps_per_update": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 20}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_here(whole, **options)
    trainer = "syvla.training.rl.trainer:SyVLAPPOTrainer.compute_loss"
    die(
        start(broken, command=killed_at("syvla.training.ppo", trainer, "args[0].state.global_step == 2"), **options),
        broken,
    )
    assert (broken / "checkpoint-2").is_dir()
    naming = "syvla.training.run.checkpoints:publish"
    die(
        start(broken, command=killed_at("syvla.training.ppo", naming, "args[1].name == 'checkpoint-6'"), **options),
        broken,
    )
    assert (broken / "_unfinished" / "checkpoint-6" / "config.json").is_file(), "it has no name yet"
    assert not (broken / "checkpoint-6").exists()
    finish(start(broken, **options), broken)
    assert "continuing" in (broken / "worker.log").read_text()
    assert not (broken / "_unfinished").exists()
    (mine, my_history), (theirs, their_history) = result(broken), result(whole)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(mine, theirs, strict=True) for name in b)
    assert [u["version"] for u in my_history] == [u["version"] for u in their_history] == [1, 2]
    state = json.loads((broken / "rollout_state.json").read_text())
    assert len(state["consumed"]) == len(set(state["consumed"])) == 8


def test_two_workers_share_an_update(start, run_here, tmp_path, monkeypatch):
    """The same samples in one process of twice the batch and in two processes: the same losses, and the same policy up to
    rounding, which process 0 alone publishes.

    With plain gradient descent: Adam's first steps take the sign of a gradient, be it rounding noise.
    """
    options = {"max_rl_updates": 1, "steps_per_update": 3, "optim": "sgd"}
    alone, pair, script = tmp_path / "alone", tmp_path / "pair", tmp_path / "noting.py"
    script.write_text(NOTE_PUBLICATIONS)
    monkeypatch.setenv("PUBLICATIONS", str(tmp_path / "publications"))
    run_here(alone, per_device_train_batch_size=4, **options)
    command = (sys.executable, str(script))
    finish(start(pair, processes=2, command=command, per_device_train_batch_size=2, **options), pair)
    (mine, _), (theirs, _) = result(pair), result(alone)
    for a, b in zip(mine, theirs, strict=True):
        for name in b:
            torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-5, msg=name)
    logs = [json.loads((folder / "log_history.json").read_text())[:3] for folder in (pair, alone)]
    for one, other in zip(*logs, strict=True):
        for name in (
            "loss",
            "loss/policy_avg",
            "loss/value_avg",
            "policy/cfm_rollout",
            "policy/cfm_expert",
            "val/ratio",
        ):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    assert logs[0][0]["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert (tmp_path / "publications").read_text().split("\n") == ["0 0", "0 1", ""]


def test_two_trainers_on_one_run(start, rl_options, record_rollouts, tmp_path):
    """The second one is told of the first and spoils nothing; one foreign rollout is set aside; a killed trainer keeps nobody
    out, and the third one takes the rollouts that the first had claimed."""
    output, rollouts = tmp_path / "run", tmp_path / "rollouts"
    version = json.loads((Path(rl_options["rollouts_path"]) / "meta" / "rollouts" / "episode-000000.json").read_text())
    record_rollouts(rollouts, "somebody else's", [1], seed=7)
    record_rollouts(rollouts, version["policy_versions"][0], [1, 0] * 4, seed=8)
    options = {"rollouts_path": rollouts, "max_rl_updates": 1, "steps_per_update": 2, "wait_timeout_s": 600}
    trainer = "syvla.training.rl.trainer:SyVLAPPOTrainer.compute_loss"
    stopped = "args[0].state.global_step == 1 and os.kill(os.getpid(), signal.SIGSTOP) is None and False"
    first = start(output, command=killed_at("syvla.training.ppo", trainer, stopped), **options)
    ledger = Ledger(output)
    until(lambda: len(ledger.read().names(CLAIMED)) == 4 or first.poll() is not None, 600)
    other = start(output, **options)
    assert other.wait(timeout=600) == 1
    assert f"another trainer works on {output} (process {first.pid} on" in (output / "worker.log").read_text()
    os.kill(first.pid, signal.SIGKILL)
    die(first, output)
    finish(start(output, **options), output)
    known = ledger.read()
    assert (len(known.names(CONSUMED)), known.names(CLAIMED), known.lineage) == (4, [], [0, 1])
    (aside,) = known.names(SET_ASIDE)
    assert known.rollouts[aside].why.startswith('foreign: made by policies ["somebody else\'s"]')
