"""`syvla-pretrain`: bad input is one clear error before anything heavy is loaded; figures of mixtures under its defaults."""

import json

import numpy as np
import pytest
from transformers import AutoModel, AutoProcessor

from syvla.processing import RobotDatasetWriter
from syvla.training.pretrain import main

CAMERAS = {"center": "observation.images.head"}


@pytest.fixture(scope="module")
def one_arm_path(tmp_path_factory):
    """Two episodes of 12 frames, 7 joints, one camera of another name, twice the rate."""
    root = tmp_path_factory.mktemp("data") / "one_arm"
    rng = np.random.default_rng(1)
    vector = {"dtype": "float32", "shape": [7], "names": [f"joint_{i}" for i in range(7)]}
    image = {"dtype": "image", "shape": [32, 32, 3], "names": ["height", "width", "channels"]}
    features = {"observation.images.top": image, "observation.state": vector, "action": vector}
    with RobotDatasetWriter(root, fps=20, features=features, use_videos=False) as writer:
        for _ in range(2):
            for _ in range(12):
                frame = {key: rng.normal(size=7).astype(np.float32) for key in ("observation.state", "action")}
                frame["observation.images.top"] = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                writer.add_frame(frame, "push the block")
            writer.save_episode()
    return root


def arguments(model, output, robots, chats=(), **options):
    values = {"model_path": model, "output_dir": output, "max_steps": 2, "warmup_steps": 1, "use_cpu": True}
    values |= {"save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "per_device_train_batch_size": 20}
    words = [text for name, value in {**values, **options}.items() for text in (f"--{name}", str(value))]
    words += ["--robot_datasets", *map(json.dumps, robots)] if robots else []
    return words + (["--multimodal_datasets", *map(str, chats)] if chats else [])


def test_robots_of_different_dimensions_cameras_and_rates_share_every_batch(
    base_checkpoint, robot_dataset_path, one_arm_path, multimodal_path, tmp_path
):
    """35% of 20 are 7 chats; the 13 others come from both robots."""
    robots = [
        {"path": str(robot_dataset_path), "embodiment": "two_arms", "cameras": CAMERAS, "weight": 1.0},
        {"path": str(one_arm_path), "embodiment": "one_arm", "control_hz": 10, "weight": 1.0},
    ]
    assert main(arguments(base_checkpoint, tmp_path, robots, [multimodal_path])) == 0
    log = [e for e in json.loads((tmp_path / "log_history.json").read_text()) if "loss" in e]
    for entry in log:
        assert {"action_loss_by_embodiment/two_arms", "action_loss_by_embodiment/one_arm"} <= entry.keys()
        assert "lm_loss_by_source/one_arm" not in entry, "it has no thoughts"
        assert 0 <= entry["speed/data_wait_share"] <= 1
        assert entry["speed/samples_per_second"] > 0
        assert entry["grad_norm"] > 0
    dims = {
        n: (e["state_dim"], e["action_dim"]) for n, e in AutoModel.from_pretrained(tmp_path).config.embodiments.items()
    }
    assert dims == {"two_arms": (14, 14), "one_arm": (7, 7)}
    assert AutoProcessor.from_pretrained(tmp_path).embodiments["one_arm"]["control_hz"] == 10
    assert "Multi-modal samples: 0.35 of every batch" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {"cameras": {"center": "top"}},
            {},
            "'top' is no camera of this dataset; choose from ['observation.images.head'",
        ),
        ({"state_key": "qpos"}, {}, "state_key: 'qpos' is no vector feature of this dataset; choose one of"),
        ({"action_key": "qpos"}, {}, "'observation.state', 'action'"),
        ({}, {"multimodal_share": 1.0}, "multimodal_share: expected a number in [0, 1), got 1.0"),
        ({}, {"multimodal_share": -0.1}, "multimodal_share: expected a number in [0, 1), got -0.1"),
        (None, {"model_path": "no/such/model"}, "robot"),
        ({}, {"model_path": "no/such/model"}, "multimodal_share: 0.35 of every batch is to be multi-modal, but no"),
        (
            {},
            {"resume_from_checkpoint": "last", "multimodal_share": 0},
            "holds no whole checkpoint; start the run without",
        ),
    ],
)
def test_bad_input_is_one_clear_error(
    change, options, message, base_checkpoint, robot_dataset_path, multimodal_path, tmp_path, capsys
):
    """A side that is missing is found before the model is looked for, which does not exist in these cases."""
    spec = {"path": str(robot_dataset_path), "embodiment": "two_arms", **(change or {})}
    robots = [] if change is None else [spec]
    chats = [multimodal_path] if change else []
    assert main(arguments(options.pop("model_path", base_checkpoint), tmp_path, robots, chats, **options)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "no/such/model" not in error


def test_data_sets_of_one_robot_with_other_dimensions_are_both_named(
    base_checkpoint, robot_dataset_path, one_arm_path, tmp_path, capsys
):
    robots = [{"path": str(path), "embodiment": "arms"} for path in (robot_dataset_path, one_arm_path)]
    assert main(arguments(base_checkpoint, tmp_path, robots, multimodal_share=0)) == 1
    error = capsys.readouterr().err
    assert (
        f"{robot_dataset_path} has 14, {one_arm_path} has 7; give each kind of robot an embodiment of its own" in error
    )


def test_missing_statistics_name_the_command_that_computes_them(base_checkpoint, robot_dataset_path, tmp_path, capsys):
    model, processor = AutoModel.from_pretrained(base_checkpoint), AutoProcessor.from_pretrained(base_checkpoint)
    model.add_embodiment("arms", 14, 14)
    processor.embodiments["arms"] = {**model.config.embodiments["arms"], "statistics": {}, "normalization": {}}
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    robots = [{"path": str(robot_dataset_path), "embodiment": "arms", "cameras": CAMERAS}]
    words = arguments(tmp_path / "model", tmp_path / "out", robots, multimodal_share=0)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "statistics: state is missing for embodiment 'arms'; compute them with syvla-finetune" in error
    assert "--recompute_statistics true" in error
    assert main([*words, "--recompute_statistics", "true"]) == 0
