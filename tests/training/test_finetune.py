"""The fine-tuning script, run as its users run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from syvla.processing import RobotDataset
from syvla.processing.cleaning.command import clean_dataset
from syvla.processing.cleaning.filters import CleaningSettings
from syvla.training.finetune import main
from syvla.training.run.adapters import load_adapter

SCRIPT = Path(__file__).parents[2] / "training" / "finetune.py"


CAMERAS = {view: f"observation.images.{name}" for view, name in (("center", "head"), ("left_wrist", "left_wrist"))}


def options(model, data, output, **more):
    spec = {"path": str(data), "embodiment": "two_arms", "cameras": CAMERAS}
    values = {
        "model_path": model,
        "robot_datasets": json.dumps(spec),
        "output_dir": output,
        "multimodal_share": 0.0,
        "max_steps": 4,
        "warmup_steps": 1,
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **more,
    }
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def history(folder):
    return [entry for entry in json.loads((folder / "log_history.json").read_text()) if "loss" in entry]


@pytest.mark.smoke
def test_checkpoint_loads_acts_and_carries_its_card(base_checkpoint, robot_dataset_path, multimodal_path, tmp_path):
    arguments = options(
        base_checkpoint, robot_dataset_path, tmp_path, multimodal_datasets=multimodal_path, multimodal_share=0.5
    )
    assert main(arguments) == 0
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert model.config.embodiments == {"two_arms": {"id": 0, "state_dim": 14, "action_dim": 14}}
    assert processor.disagreements(model.config) == []
    assert processor.embodiments["two_arms"]["action_names"][0] == "joint_0"
    log = history(tmp_path)
    assert all(entry["lm_loss"] > 0 and entry["action_loss"] > 0 for entry in log)
    assert all(entry["decoupling/masked_fraction"] == pytest.approx(1 / 8) for entry in log)
    assert log[-1]["learning_rate"] == pytest.approx(1e-4 + 9e-4 * 0.25, rel=0.2)
    card = (tmp_path / "README.md").read_text()
    assert "two_arms" in card
    assert "Multi-modal samples: 0.5 of every batch" in card
    assert not list(tmp_path.glob("*.bin"))


def test_augmented_run_resumes_exactly_with_workers_and_says_what_it_did(base_checkpoint, robot_dataset_path, tmp_path):
    common = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "augmentation": "strong"}
    assert main(options(base_checkpoint, robot_dataset_path, tmp_path / "whole", **common)) == 0
    plain = {**common, "save_strategy": "no", "max_steps": 1, "augmentation": "none"}
    assert main(options(base_checkpoint, robot_dataset_path, tmp_path / "plain", **plain)) == 0
    arguments = options(base_checkpoint, robot_dataset_path, tmp_path / "resumed", dataloader_num_workers=1, **common)
    assert main([*arguments, "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-2")]) == 0
    whole, resumed, plain = (history(tmp_path / name) for name in ("whole", "resumed", "plain"))
    assert [e["loss"] for e in resumed] == [e["loss"] for e in whole]
    assert plain[0]["loss"] != whole[0]["loss"]
    assert "- augmentation, rotation: 8.0" in (tmp_path / "whole" / "README.md").read_text()
    assert "augment" not in (tmp_path / "whole" / "processor_config.json").read_text()


def test_resumed_run_gives_the_losses_of_an_unbroken_one(base_checkpoint, robot_dataset_path, tmp_path):
    common = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "gradient_accumulation_steps": 2}
    assert main(options(base_checkpoint, robot_dataset_path, tmp_path / "whole", **common)) == 0
    resume = tmp_path / "whole" / "checkpoint-3"
    arguments = options(base_checkpoint, robot_dataset_path, tmp_path / "resumed", **common)
    assert main([*arguments, "--resume_from_checkpoint", str(resume)]) == 0
    whole, resumed = (history(tmp_path / name) for name in ("whole", "resumed"))
    assert [e["loss"] for e in resumed] == [e["loss"] for e in whole]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_model_overrides_reach_the_saved_config(base_checkpoint, robot_dataset_path, tmp_path):
    overrides = json.dumps({"intention_decoupling": False, "lm_loss_weight": 0.5, "simulated_delay": 3})
    assert main(options(base_checkpoint, robot_dataset_path, tmp_path, model_overrides=overrides, max_steps=1)) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["intention_decoupling"], config["lm_loss_weight"], config["simulated_delay"]) == (False, 0.5, 3)
    assert "decoupling/masked_fraction" not in history(tmp_path)[0]


def test_delta_actions_another_rate_and_a_filter_come_from_the_recipe(base_checkpoint, robot_dataset_path, tmp_path):
    clean_dataset(robot_dataset_path, tmp_path / "clean", CleaningSettings(min_seconds=0), progress=False)
    spec = {
        "path": str(robot_dataset_path),
        "embodiment": "two_arms",
        "cameras": CAMERAS,
        "control_hz": 20,
        "delta_actions": [f"joint_{i}" for i in range(13)],
        "filter_file": str(tmp_path / "clean" / "filter.json"),
    }
    out = tmp_path / "out"
    assert main(options(base_checkpoint, robot_dataset_path, out, robot_datasets=json.dumps(spec), max_steps=1)) == 0
    entry = AutoProcessor.from_pretrained(out).embodiments["two_arms"]
    assert entry["control_hz"] == 20
    assert entry["delta_actions"] == [*range(13), -1]
    reader = {key: spec[key] for key in ("embodiment", "cameras", "control_hz", "filter_file")}
    dataset = RobotDataset(robot_dataset_path, chunk_size=8, **reader)
    statistics = {
        kind: {k: v for k, v in values.items() if k != "floor"} for kind, values in entry["statistics"].items()
    }
    assert statistics == dataset.statistics([*range(13), -1])
    assert entry["statistics"]["action"] != dataset.statistics()["action"]
    again = json.dumps({**spec, "delta_actions": False})
    assert main(options(out, robot_dataset_path, tmp_path / "again", robot_datasets=again, max_steps=1)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_overrides": '{"chunk": 3}'}, "['chunk'] are no fields of the model's config"),
        ({"robot_datasets": "missing/place"}, "names no embodiment"),
        ({"robot_datasets": '{"embodiment": "a"}'}, "every entry needs a 'path'"),
        ({"robot_datasets": '{"path": }'}, "robot_datasets: expected a path, a Hub id or a JSON object"),
        ({"robot_datasets": '{"path": "a", "embodimnt": "b"}'}, "unknown key 'embodimnt'; did you mean 'embodiment'?"),
        (
            {"multimodal_datasets": '{"path": "a", "shuffle": 1}'},
            "unknown key 'shuffle'; did you mean 'shuffle_buffer'?",
        ),
        ({"model_overrides": "{chunk"}, "model_overrides: expected JSON"),
        ({"model_path": "no/such/folder"}, "model_path: no/such/folder is no folder"),
        ({"multimodal_share": 1.5, "multimodal_datasets": "CHATS"}, "multimodal_share: expected a number in [0, 1)"),
        ({"multimodal_share": 1.0, "multimodal_datasets": "CHATS"}, "multimodal_share: expected a number in [0, 1)"),
        ({"multimodal_share": 0.3, "model_path": "a/b"}, "no multimodal_datasets are given; list some"),
    ],
)
def test_bad_input_is_one_clear_error(
    change, message, base_checkpoint, robot_dataset_path, multimodal_path, tmp_path, capsys
):
    change = {key: str(multimodal_path) if value == "CHATS" else value for key, value in change.items()}
    assert main(options(base_checkpoint, robot_dataset_path, tmp_path, **change)) == 1
    error = capsys.readouterr().err
    assert "error: " in error
    assert message in error


def test_all_problems_of_the_data_are_listed_before_training(base_checkpoint, robot_dataset_path, tmp_path, capsys):
    """Two datasets that both cannot work with the checkpoint's embodiment."""
    from syvla.processing import RobotDataset

    model, processor = AutoModel.from_pretrained(base_checkpoint), AutoProcessor.from_pretrained(base_checkpoint)
    dataset = RobotDataset(robot_dataset_path, embodiment="two_arms", cameras=CAMERAS)
    short = {k: {s: v[:6] for s, v in stats.items() if s != "count"} for k, stats in dataset.statistics().items()}
    processor.set_embodiment("two_arms", short)
    model.add_embodiment("two_arms", 6, 6)
    folder = tmp_path / "six_joints"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert main(options(folder, robot_dataset_path, tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert "observation.state: 14 dimensions" in error
    assert "action: 14 dimensions" in error
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_problems_of_robot_and_multimodal_data_stand_in_one_error(
    base_checkpoint, robot_dataset_path, tmp_path, capsys
):
    chats = tmp_path / "chats.jsonl"
    user, answer = {"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "two"}
    chats.write_text(json.dumps({"messages": [user, answer], "images": ["missing.png"]}) + "\n")
    spec = {"path": str(robot_dataset_path), "embodiment": "arms", "cameras": {"wrist": "observation.images.head"}}
    wrong = {"robot_datasets": json.dumps(spec), "multimodal_datasets": chats, "multimodal_share": 0.25}
    assert main(options(base_checkpoint, robot_dataset_path, tmp_path / "out", **wrong)) == 1
    error = capsys.readouterr().err
    assert "'wrist' is no view of the model" in error
    assert "chats.jsonl, row 0: cannot be read" in error
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_one_normalization_may_be_named_for_states_and_actions(base_checkpoint, robot_dataset_path, tmp_path):
    spec = {"path": str(robot_dataset_path), "embodiment": "arms", "cameras": CAMERAS, "normalization": "quantile"}
    assert main(options(base_checkpoint, "", tmp_path, robot_datasets=json.dumps(spec), max_steps=1)) == 0
    entry = AutoProcessor.from_pretrained(tmp_path).embodiments["arms"]
    assert entry["normalization"] == {"state": "quantile", "action": "quantile"}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_two_processes_under_accelerate_launch(base_checkpoint, robot_dataset_path, multimodal_path, tmp_path, adapter):
    """Data-parallel on two CPU processes, with averaged weights and an embodiment that no sample uses."""
    model, processor = AutoModel.from_pretrained(base_checkpoint), AutoProcessor.from_pretrained(base_checkpoint)
    model.add_embodiment("unused", 3, 3)
    processor.set_embodiment("unused", {k: {"mean": [0.0] * 3, "std": [1.0] * 3} for k in ("state", "action")})
    start = tmp_path / "start"
    model.save_pretrained(start)
    processor.save_pretrained(start)
    arguments = options(
        start,
        robot_dataset_path,
        tmp_path / "out",
        multimodal_datasets=multimodal_path,
        multimodal_share=0.25,
        ddp_find_unused_parameters=False,
        recompute_statistics=True,
        adapter=adapter,
        ema_decay=0.9,
    )
    launch_two_processes(arguments)
    log = history(tmp_path / "out")
    assert len(log) == 4
    assert all(entry["loss"] == entry["loss"] for entry in log)
    if adapter == "none":
        trained = AutoModel.from_pretrained(tmp_path / "out")
    else:
        trained = load_adapter(tmp_path / "out")[0].merge_and_unload()
    for name, parameter in model.expert.embodiments["unused"].named_parameters():
        assert torch.equal(parameter, trained.expert.embodiments["unused"].get_parameter(name)), name


@pytest.mark.slow
def test_two_processes_resume_in_a_later_epoch_where_they_stopped(base_checkpoint, robot_dataset_path, tmp_path):
    """36 frames in batches of 2 x 8 are 3 steps an epoch; the run stops in the second and ends in the third."""
    common = {"per_device_train_batch_size": 8, "max_steps": 7, "save_strategy": "steps", "save_steps": 5}
    launch_two_processes(options(base_checkpoint, robot_dataset_path, tmp_path / "whole", **common))
    resume = {"resume_from_checkpoint": tmp_path / "whole" / "checkpoint-5"}
    launch_two_processes(options(base_checkpoint, robot_dataset_path, tmp_path / "resumed", **common, **resume))
    whole, resumed = (history(tmp_path / name) for name in ("whole", "resumed"))
    assert [entry["step"] for entry in resumed] == list(range(1, 8))
    assert [entry["loss"] for entry in resumed] == [entry["loss"] for entry in whole]


def launch_two_processes(arguments):
    """Runs the script in two processes; `accelerate launch --cpu` would start a single one."""
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launch, str(SCRIPT), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]


def test_units_of_a_recording_stand_on_the_card(base_checkpoint, robot_dataset_path, tmp_path, capsys):
    units = {"state": ["rad"] * 14, "action": ["m"] * 14}
    spec = {"path": str(robot_dataset_path), "embodiment": "two_arms", "cameras": CAMERAS, "units": units}
    arguments = {"robot_datasets": json.dumps(spec), "max_steps": 1}
    assert main(options(base_checkpoint, robot_dataset_path, tmp_path / "out", **arguments)) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| state: joint_3 [rad] |" in card
    assert "| action: joint_3 [m] |" in card
    spec["units"] = {"state": ["rad"], "action": ["m"] * 14}
    assert main(options(base_checkpoint, robot_dataset_path, tmp_path / "bad", robot_datasets=json.dumps(spec))) == 1
    assert "one unit per dimension" in capsys.readouterr().err
