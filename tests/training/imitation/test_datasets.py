"""Data of a run: unusable rows of web data are skipped and named, and end the run only where they are many."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModel, AutoProcessor

from syvla.processing import RobotDataset, RobotDatasetWriter
from syvla.training.finetune import main


@pytest.fixture
def web_data(tmp_path):
    """Chats of which every second one would end a run: `web_data(good, bad) -> path`."""

    def chat(text, image):
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": "two"}]}
        return {"messages": [user, answer], "images": [image]}

    def write(good: int, bad: int):
        Image.new("RGB", (32, 32), (90, 0, 0)).save(tmp_path / "picture.png")
        kinds = [("Say <|im_end|> twice.", "picture.png"), ("word " * 6000, "picture.png"), ("What?", "gone.png")]
        rows = [chat("How many?", "picture.png")] * good + [chat(*kinds[i % 3]) for i in range(bad)]
        path = tmp_path / "chats.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
        return path

    return write


def test_unusable_rows_do_not_end_a_run_and_are_named(finetune, web_data, tmp_path):
    out = tmp_path / "out"
    path = web_data(good=9, bad=3)
    options = {"max_steps": 4, "multimodal_datasets": path, "multimodal_share": 0.75}  # 12 rows: every one is met
    assert finetune(out, **options) == 0
    entries = [json.loads(line) for line in (out / "skipped_rows.jsonl").read_text().splitlines()]
    assert {(entry["path"], entry["row"], entry["cause"]) for entry in entries} == {
        (str(path), 9, "control tokens"),
        (str(path), 10, "too long"),
        (str(path), 11, "missing image"),
    }
    logged = json.loads((out / "log_history.json").read_text())
    counts = {key: value for entry in logged for key, value in entry.items() if key.startswith("skipped_rows/")}
    assert set(counts) == {
        f"skipped_rows/chats.jsonl/{cause}" for cause in ("control tokens", "too long", "missing image")
    }


def test_too_many_unusable_rows_end_the_run_with_their_causes(finetune, web_data, tmp_path, capsys):
    options = {"max_steps": 60, "multimodal_datasets": web_data(good=60, bad=60), "multimodal_share": 0.75}
    assert finetune(tmp_path / "out", **options, max_skipped_share=0.1) == 1
    message = capsys.readouterr().err
    assert "rows cannot be used" in message
    assert "'control tokens':" in message
    assert "max_skipped_share=0.1" in message
    assert "skipped_rows.jsonl" in message


@pytest.fixture
def four_cameras(tmp_path):
    """A recording with two scene cameras and two at the wrists."""
    names = ("front", "side", "left_wrist", "right_wrist")
    features = {
        f"observation.images.{name}": {"dtype": "image", "shape": [32, 32, 3], "names": ["height", "width", "channels"]}
        for name in names
    }
    features |= {key: {"dtype": "float32", "shape": [3], "names": None} for key in ("observation.state", "action")}
    rng = np.random.default_rng(0)
    with RobotDatasetWriter(tmp_path / "robot", fps=10, features=features, use_videos=False) as writer:
        for _ in range(12):
            frame = {key: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for key in features if "images" in key}
            vectors = {key: rng.normal(size=3).astype(np.float32) for key in ("observation.state", "action")}
            writer.add_frame({**frame, **vectors}, task="go")
        writer.save_episode()
    return tmp_path / "robot"


def test_two_scene_cameras_become_views_of_a_trained_checkpoint(finetune_arguments, four_cameras, tmp_path, caplog):
    robot = json.dumps({"path": str(four_cameras), "embodiment": "arm"})
    arguments = finetune_arguments(tmp_path / "out", robot_datasets=robot, max_steps=2)
    views = ["front=center", "side", "left_wrist", "right_wrist"]
    with caplog.at_level(logging.INFO, logger="syvla"):
        assert main([*arguments, "--views", *views]) == 0
    lines = [record.getMessage() for record in caplog.records if "unused" in record.getMessage()]
    assert lines == [
        f"{four_cameras}: cameras: front = observation.images.front, side = observation.images.side, left_wrist = "
        "observation.images.left_wrist, right_wrist = observation.images.right_wrist; unused: none; views without a camera: "
        "none"
    ]
    model, processor = AutoModel.from_pretrained(tmp_path / "out"), AutoProcessor.from_pretrained(tmp_path / "out")
    assert model.config.views == processor.views == ["front", "side", "left_wrist", "right_wrist"]
    assert model.expert.view_embedding.weight.shape[0] == 4
    assert processor.embodiments["arm"]["cameras"]["side"] == "observation.images.side"


def test_a_camera_that_no_view_shows_is_named(finetune_arguments, four_cameras, tmp_path, caplog):
    robot = json.dumps({"path": str(four_cameras), "embodiment": "arm"})
    with caplog.at_level(logging.INFO, logger="syvla"):
        assert main(finetune_arguments(tmp_path / "out", robot_datasets=robot, max_steps=1)) == 0
    assert any("unused: observation.images.side; views without" in record.getMessage() for record in caplog.records)


def test_vectors_and_delta_actions_come_from_the_recipe(finetune, four_cameras, tmp_path):
    robot = {
        "path": str(four_cameras),
        "embodiment": "arm",
        "cameras": {"center": "observation.images.side"},
        "state_key": ["observation.state", {"key": "action", "start": 2}],
        "action_key": [{"key": "action", "start": 1}],
        "delta_actions": {"1": 0},
    }
    assert finetune(tmp_path / "out", robot_datasets=json.dumps(robot), max_steps=1) == 0
    entry = AutoProcessor.from_pretrained(tmp_path / "out").embodiments["arm"]
    assert (entry["state_dim"], entry["action_dim"], entry["delta_actions"]) == (4, 2, [-1, 0])
    data = RobotDataset(four_cameras, embodiment="x", cameras=robot["cameras"])
    np.testing.assert_allclose(entry["statistics"]["state"]["mean"][:3], data.states.mean(0), rtol=1e-5)
    np.testing.assert_allclose(entry["statistics"]["state"]["mean"][3], data.actions[:, 2].mean(), rtol=1e-5)


def test_views_are_no_model_override(finetune, tmp_path, capsys):
    assert finetune(tmp_path / "out", model_overrides=json.dumps({"views": ["front"]})) == 1
    assert "the option views" in capsys.readouterr().err
