"""`syvla-new`: a checkpoint that fits a dataset, and the way from a recording to a fine-tuned policy by commands alone."""

import json

import numpy as np
import pytest
from pretrained_parts import save_vision_tower, save_vlm
from transformers import AutoModel, AutoProcessor

from syvla.evaluation.demonstration_recording import main as record
from syvla.processing import RobotDataset
from syvla.processing.transforms import infer_cameras
from syvla.training.finetune import main as finetune
from syvla.training.new_checkpoint import choose_views, main, new_checkpoint

EXPERT = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 32, "ff_multiple_of": 32}


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_recording_to_fine_tuned_policy_is_three_commands(size, tmp_path, capsys):
    data, base, output = (str(tmp_path / name) for name in ("data", "base", "output"))
    assert record(["--episodes", "1", "--output", data]) == 0
    capsys.readouterr()
    assert main(["--size", size, "--robot-from", data, "--output", base]) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed[printed.index("{\n") :])  # libraries may have said something before
    training = ["--max_steps", "2", "--warmup_steps", "1", "--per_device_train_batch_size", "2", "--use_cpu", "True"]
    data_options = ["--robot_datasets", data, "--multimodal_share", "0"]
    assert finetune(["--model_path", base, "--output_dir", output, *data_options, *training]) == 0

    dataset = RobotDataset(data, embodiment="robot")
    model, processor = AutoModel.from_pretrained(output), AutoProcessor.from_pretrained(output)
    assert processor.disagreements(model.config) == []
    (name,) = processor.embodiments
    entry = processor.embodiments[name]
    assert name == report["embodiment"]
    assert (entry["state_dim"], entry["action_dim"]) == (dataset.state_dim, dataset.action_dim)
    assert entry["action_names"] == dataset.action_names
    assert entry["control_hz"] == dataset.fps
    assert entry["cameras"] == dataset.cameras == report["cameras"]
    assert np.allclose(entry["statistics"]["action"]["mean"], dataset.actions.mean(0), atol=1e-5)
    item = {**dataset[0], "embodiment": name}
    inputs = processor(images=item["images"], text=item["text"], state=item["state"], embodiment=name)
    chunk = processor.decode_actions(model.predict_actions(**inputs).actions, name)
    assert chunk.shape == (1, model.config.chunk_size, dataset.action_dim)
    assert np.isfinite(chunk).all()


def test_weights_depend_on_the_seed_alone(robot_dataset_path, tmp_path):
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        new_checkpoint("tiny", str(robot_dataset_path), tmp_path / name, seed=seed)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_full_size_is_assembled_from_its_parts(robot_dataset_path, tmp_path):
    save_vlm(tmp_path / "vlm", files=True)
    save_vision_tower(tmp_path / "siglip", files=True)
    new_checkpoint(
        "3b",
        str(robot_dataset_path),
        tmp_path / "base",
        chunk_size=12,
        vlm=tmp_path / "vlm",
        vision_tower=tmp_path / "siglip",
        config_overrides={"expert_config": EXPERT, "num_query_tokens": 4},
    )
    model, processor = AutoModel.from_pretrained(tmp_path / "base"), AutoProcessor.from_pretrained(tmp_path / "base")
    assert processor.disagreements(model.config) == []
    assert model.config.embodiments == {"my_robot": {"id": 0, "state_dim": 14, "action_dim": 14}}
    assert (model.config.chunk_size, list(model.config.views)) == (12, ["center", "left_wrist", "right_wrist"])
    assert processor.embodiments["my_robot"]["action_names"][13] == "joint_13"


def test_missing_parts_say_what_to_download_and_leave_nothing(robot_dataset_path, tmp_path, capsys):
    arguments = ["--size", "3b", "--robot-from", str(robot_dataset_path), "--output", str(tmp_path / "base")]
    assert main([*arguments, "--vlm", str(tmp_path / "none"), "--vision-tower", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert "hf download" in error
    assert "--size tiny or small" in error
    assert not (tmp_path / "base").exists()


def test_a_used_folder_and_options_without_effect_are_refused(robot_dataset_path, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    arguments = ["--size", "tiny", "--robot-from", str(robot_dataset_path), "--output", str(tmp_path)]
    assert main(arguments) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main([*arguments, "--vlm", "x"]) == 1
    assert "have no effect with --size tiny" in capsys.readouterr().err
    assert main(["--size", "tiny", "--robot-from", str(tmp_path), "--output", str(tmp_path / "new")]) == 1
    assert "info.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cameras", "views"),
    [
        (["front"], ["center"]),
        (["wrist", "top"], ["center", "left_wrist"]),
        (["top", "side", "wrist.left"], ["center", "left_wrist", "side"]),
        (["top", "front"], ["top", "front"]),
        (["side", "low"], ["side", "low"]),
    ],
)
def test_every_camera_gets_a_view_that_later_commands_find(cameras, views):
    keys = [f"observation.images.{name}" for name in cameras]
    chosen = choose_views(keys)
    assert list(chosen) == views
    assert sorted(chosen.values()) == sorted(keys)
    assert infer_cameras(keys, views) == chosen
