"""Which sampler a run gets, and training on streamed data: killed in the middle of a download, it resumes exactly."""

import json
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from killed_processes import killed_at

from benchmarks.throttled_server import FolderServer
from syvla.processing.mixture import MixtureBatchSampler
from syvla.processing.streaming.prefetch import LookAheadBatchSampler
from syvla.training.imitation.look_ahead import look_ahead

VIEWS = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}


def arguments(**values):
    defaults = {"gradient_accumulation_steps": 2, "dataloader_num_workers": 3, "dataloader_prefetch_factor": None}
    return SimpleNamespace(**{**defaults, "world_size": 1, **values})


def test_local_data_is_sampled_as_it_was():
    sampler = MixtureBatchSampler([10], batch_size=2, multimodal_share=0.0)
    assert look_ahead(sampler, [SimpleNamespace(streamed=False)], arguments()) is sampler


def test_the_window_is_a_share_of_the_cache_and_skips_what_was_trained_on(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    sampler = MixtureBatchSampler([20], batch_size=2, multimodal_share=0.0)  # 10 batches, 5 steps of an epoch
    streamed = SimpleNamespace(streamed=True, files=SimpleNamespace(planned=False, cache=SimpleNamespace(limit=1000)))
    ahead = look_ahead(sampler, [streamed], arguments(), resumed_step=7)
    assert isinstance(ahead, LookAheadBatchSampler)
    assert ahead.window == 250, "half of the cache for two processes"
    assert (ahead._skipped, ahead._in_flight) == (4, 6), (
        "two steps of the second epoch; three workers with two batches each"
    )


@pytest.fixture
def command(base_checkpoint, robot_dataset_path, tmp_path):
    """`command(output, **entry) -> words` of a fine-tuning of four steps, a checkpoint after each."""

    def make(output, path=robot_dataset_path, **entry):
        data = json.dumps({"path": str(path), "embodiment": "two_arms", "cameras": VIEWS, **entry})
        values = {
            "model_path": base_checkpoint,
            "robot_datasets": data,
            "output_dir": tmp_path / output,
            "max_steps": 4,
        }
        values |= {"multimodal_share": 0, "warmup_steps": 1, "per_device_train_batch_size": 2, "logging_steps": 1}
        values |= {"save_steps": 1, "use_cpu": True, "disable_tqdm": True, "resume_from_checkpoint": "auto"}
        return [text for name, value in values.items() for text in (f"--{name}", str(value))]

    return make


def losses(folder: Path) -> list[float]:
    entries = json.loads((folder / "log_history.json").read_text())
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_a_run_that_is_killed_in_a_download_resumes_to_the_losses_of_local_data(command, robot_dataset_path, tmp_path):
    from syvla.training.finetune import main

    assert main(command("local", shuffle_files=2)) == 0
    with FolderServer.running(robot_dataset_path) as server:
        entry = {"path": f"{server.url}", "streaming": True, "cache_gb": 0.01, "cache_dir": str(tmp_path / "cache")}
        words = command("streamed", **entry, shuffle_files=2)
        half = "'data/' in args[1] or 'videos/' in args[1]"
        killing = killed_at(
            "syvla.training.finetune", "syvla.processing.streaming.remote_folder:RemoteFolder._part", half
        )
        killed = subprocess.run([*killing, *words], capture_output=True, text=True, check=False, env=dict(os.environ))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert list((tmp_path / "cache/partial").iterdir()), "it died in a download"
        assert not list((tmp_path / "cache/files").iterdir())
        assert main(words) == 0
    assert losses(tmp_path / "streamed") == losses(tmp_path / "local")
    assert len(losses(tmp_path / "local")) == 4


def test_settings_of_streaming_that_have_no_effect_end_the_command(command, tmp_path, capsys):
    from syvla.training.finetune import main

    assert main(command("out", streaming=True)) == 1
    assert "is a local folder, which is read without it; leave streaming and cache_gb out" in capsys.readouterr().err
    assert main(command("out", shuffle_files=0)) == 1
    assert "shuffle_files: expected a number of runs of files of at least 1, got 0" in capsys.readouterr().err
