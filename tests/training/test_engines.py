"""DDP, FSDP2 and DeepSpeed ZeRO-2 on two CPU processes: the losses of one process, and the same after a resume or a kill."""

import importlib.util
import json
import os
import signal
import subprocess
import sys

import pytest
from killed_processes import killed_at
from ports import reserved_port
from transformers import AutoModel

from syvla.training.cpu_engines import ENGINES, SETTINGS
from syvla.training.run.checkpoints import last_whole_checkpoint

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
"""Relative, of losses: float32 sums in another order."""


def history(folder):
    return [entry for entry in json.loads((folder / "log_history.json").read_text()) if "loss" in entry]


def start(engine, arguments, port, processes=2, command=(sys.executable, "-m", "syvla.training.cpu_engines")):
    """Starts the processes of an engine as torchrun does, so that one alone may die."""
    command = [*command, "--worker", "--engine", engine, "--script", "finetune", "--", *arguments]
    command += ["--accelerator_config", SETTINGS]
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]


def run(engine, arguments):
    with reserved_port() as port:
        started = start(engine, arguments, port)
        outputs = [process.communicate()[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


@pytest.fixture
def options(multimodal_path):
    """Three robot samples, with a thought or without, and one multi-modal sample of four per process."""
    return {"multimodal_datasets": multimodal_path, "multimodal_share": 0.25, "max_steps": 4}


@pytest.fixture
def unbroken(finetune, options, tmp_path):
    """Losses of one process on the whole batch of 8, with Intention Decoupling."""
    assert finetune(tmp_path / "one", **options, per_device_train_batch_size=8) == 0
    return history(tmp_path / "one")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_gives_the_losses_of_one_process_and_resumes(engine, unbroken, options, finetune_arguments, tmp_path):
    if engine == "zero2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed (pip install 'syvla[deepspeed]'): ZeRO-2 was not run")
    options |= {"save_strategy": "steps", "save_steps": 2}
    out = tmp_path / engine
    run(engine, finetune_arguments(out, **options))
    losses = history(out)
    compared = dict.fromkeys(("loss", "action_loss", "lm_loss", "lm_loss_by_source/chats.jsonl"), TOLERANCE)
    for key, tolerance in {**compared, "grad_norm": 1e-3}.items():
        assert [entry[key] for entry in losses] == pytest.approx([e[key] for e in unbroken], rel=tolerance), key
    assert all(entry["decoupling/masked_fraction"] == 1 / 8 for entry in losses)
    assert AutoModel.from_pretrained(out).num_parameters() > 0
    run(engine, finetune_arguments(tmp_path / "again", **options, resume_from_checkpoint=out / "checkpoint-2"))
    resumed = history(tmp_path / "again")
    assert [entry["step"] for entry in resumed] == [1, 2, 3, 4]
    assert [e["loss"] for e in resumed] == pytest.approx([e["loss"] for e in losses], rel=TOLERANCE)


def test_two_processes_of_which_one_was_killed_go_on_as_if_nothing_had_been(
    unbroken, options, finetune_arguments, tmp_path
):
    """The same command starts and continues the run; the second process dies in the third step, the first one waits."""
    options |= {"save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": "auto"}
    out = tmp_path / "out"
    step = "syvla.training.imitation.trainer:SyVLATrainer.training_step"
    moment = 'os.environ["RANK"] == "1" and args[0].state.global_step == 2'
    command = killed_at("syvla.training.cpu_engines", step, moment)
    with reserved_port() as port:
        first, second = start("ddp", finetune_arguments(out, **options), port, command=command)
        output, _ = second.communicate()
        first.kill()
        first.communicate()
    assert second.returncode == -signal.SIGKILL, output[-3000:]
    assert last_whole_checkpoint(out) == out / "checkpoint-2"
    run("ddp", finetune_arguments(out, **options))
    assert [e["loss"] for e in history(out)] == pytest.approx([e["loss"] for e in unbroken], rel=TOLERANCE)
