"""lerobot-train, lerobot-eval and lerobot-rollout with SyVLA, run as users run them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_policy_syvla.processor_syvla import load_saved_processor
from lerobot_usage import run_tool
from safetensors.torch import load_file

from syvla.processing import RobotDataset

ON_CPU = ("--policy.device=cpu", "--policy.push_to_hub=false")
LAST = "checkpoints/last/pretrained_model"


def train(root: Path, output: Path, *arguments: str, steps: int = 4) -> str:
    return run_tool(
        "lerobot-train",
        f"--dataset.root={root}",
        "--dataset.repo_id=local/recording",
        "--dataset.video_backend=pyav",
        f"--output_dir={output}",
        "--batch_size=4",
        f"--steps={steps}",
        "--log_freq=1",
        "--env_eval_freq=0",
        *arguments,
    )


def losses(log: str) -> dict[int, str]:
    """Step to what was logged of its losses, as printed."""
    pattern = r"step:(\d+) .*?(loss:\S+) .*?(action_loss:\S+) (lm_loss:\S+)"
    return {int(found[1]): " ".join(found.groups()[1:]) for found in re.finditer(pattern, log)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recording, syvla_checkpoint):
    """(output folder, log) of a short training run from a SyVLA checkpoint."""
    output = tmp_path_factory.mktemp("train") / "run"
    start = (f"--policy.syvla_checkpoint={syvla_checkpoint}", "--policy.type=syvla", "--policy.embodiment=tabletop")
    return output, train(recording, output, *start, *ON_CPU, "--num_workers=0", "--save_freq=2")


def test_training_saves_every_weight_and_the_processor(trained, syvla_checkpoint):
    output, log = trained
    assert set(losses(log)) == {1, 2, 3, 4}
    assert "lm_loss" in log
    folder = output / LAST
    before, after = load_file(syvla_checkpoint / "model.safetensors"), load_file(folder / "model.safetensors")
    after = {name.removeprefix("model."): weight for name, weight in after.items()}
    after["vlm.model.language_model.embed_tokens.weight"] = after.pop(
        "vlm.lm_head.weight"
    )  # tied, saved under one name
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"vlm", "action_queries", "adapter", "expert"}
    robot = load_saved_processor(str(folder)).embodiments["tabletop"]
    assert robot["normalization"] == {"state": "quantile", "action": "min_max"}


def test_resuming_goes_on_with_the_same_data_and_weights(trained, recording, tmp_path):
    output, log = trained
    copy = tmp_path / "resumed"
    shutil.copytree(output, copy, symlinks=True)
    (copy / "checkpoints/last").unlink()
    shutil.rmtree(copy / "checkpoints/000004")
    config = copy / "checkpoints/000002/pretrained_model/train_config.json"
    resumed = run_tool("lerobot-train", f"--config_path={config}", "--resume=true", f"--output_dir={copy}", "--steps=4")
    whole, rest = losses(log), losses(resumed)
    assert set(rest) == {3, 4}
    # The text loss depends on data and weights alone. The action loss also on noise, and LeRobot restores the random state
    # before its data loader draws from it.
    assert rest[3].split()[-1] == whole[3].split()[-1]


def test_videos_and_loader_workers(video_recording, tmp_path):
    start = ("--policy.type=syvla", "--policy.random_tiny=true", "--policy.embodiment=tabletop")
    assert set(losses(train(video_recording, tmp_path / "run", *start, *ON_CPU, "--num_workers=1", steps=2))) == {1, 2}


def test_fine_tuning_a_lerobot_checkpoint_further(trained, recording, tmp_path):
    path = f"--policy.path={trained[0] / LAST}"
    log = train(recording, tmp_path / "run", path, *ON_CPU, "--num_workers=0", "--policy.dtype=bfloat16", steps=2)
    assert set(losses(log)) == {1, 2}
    first, second = (load_saved_processor(str(folder / LAST)) for folder in (trained[0], tmp_path / "run"))
    assert first.embodiments == second.embodiments


def test_adapters(trained, recording, tmp_path):
    path = f"--policy.path={trained[0] / LAST}"
    train(
        recording, tmp_path / "run", path, *ON_CPU, "--num_workers=0", "--peft.method_type=lora", "--peft.r=4", steps=2
    )
    weights = load_file(tmp_path / "run" / LAST / "adapter_model.safetensors")
    assert any("lora_A" in name for name in weights)
    assert any("expert.embodiments.tabletop" in name for name in weights)
    evaluate(tmp_path / "eval", f"--policy.path={tmp_path / 'run' / LAST}", episodes=1)


def evaluate(output: Path, *arguments: str, episodes: int = 2) -> dict:
    run_tool(
        "lerobot-eval",
        f"--output_dir={output}",
        "--env.type=syvla_tabletop",
        "--env.episode_length=12",
        f"--eval.n_episodes={episodes}",
        f"--eval.batch_size={episodes}",
        *arguments,
        *ON_CPU,
    )
    return json.loads((output / "eval_info.json").read_text())


def test_evaluation_in_closed_loop(trained, syvla_checkpoint, tmp_path):
    options = ("--policy.think=true", "--policy.max_new_tokens=4", "--policy.n_action_steps=4")
    info = evaluate(tmp_path / "a", f"--policy.path={trained[0] / LAST}", *options)
    assert info["overall"]["n_episodes"] == 2
    assert all(Path(path).stat().st_size for path in info["overall"]["video_paths"])
    # A SyVLA checkpoint needs no conversion.
    start = ("--policy.type=syvla", f"--policy.syvla_checkpoint={syvla_checkpoint}", "--policy.embodiment=tabletop")
    assert evaluate(tmp_path / "b", *start)["overall"]["n_episodes"] == 2


def test_training_evaluates_in_between(recording, tmp_path):
    start = ("--policy.type=syvla", "--policy.random_tiny=true", "--policy.embodiment=tabletop")
    environment = ("--env.type=syvla_tabletop", "--env.episode_length=6", "--eval.n_episodes=1", "--eval.batch_size=1")
    output = tmp_path / "run"
    log = train(recording, output, *start, *ON_CPU, *environment, "--num_workers=0", "--env_eval_freq=2", steps=2)
    assert "pc_success" in log


@pytest.mark.parametrize(("strategy", "inference"), [("base", "sync"), ("episodic", "sync"), ("base", "rtc")])
def test_rollout_on_a_robot(trained, tmp_path, strategy, inference):
    log = tmp_path / "sent.json"
    arguments = [
        f"--policy.path={trained[0] / LAST}",
        "--policy.device=cpu",
        "--robot.type=tabletop_robot",
        "--robot.discover_packages_path=tabletop_robot",
        f"--robot.log={log}",
        "--fps=10",
        "--play_sounds=false",
        "--return_to_initial_position=false",
        f"--strategy.type={strategy}",
        f"--inference.type={inference}",
    ]
    if inference == "rtc":
        arguments += ["--inference.rtc.execution_horizon=6", "--inference.queue_threshold=5"]
    if strategy == "base":
        arguments += ["--task=lift the red cube", "--duration=3"]
    else:
        arguments += [
            "--dataset.repo_id=local/rollout_tabletop",
            f"--dataset.root={tmp_path / 'recorded'}",
            "--dataset.single_task=lift the red cube",
            "--dataset.num_episodes=1",
            "--dataset.episode_time_s=3",
            "--dataset.reset_time_s=0",
            "--dataset.fps=10",
            "--dataset.push_to_hub=false",
        ]
    run_tool("lerobot-rollout", *arguments, python_path=Path(__file__).parent)
    sent = np.array(json.loads(log.read_text()))
    assert len(sent) >= 5
    assert sent.shape[1] == 14
    assert np.isfinite(sent).all()
    if strategy == "episodic":
        recorded = RobotDataset(next(tmp_path.glob("recorded*")), embodiment="tabletop")
        assert recorded.used_tasks == ["lift the red cube"]
        assert recorded.action_dim == 14
