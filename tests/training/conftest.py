"""A small recorded dataset and an untrained tiny checkpoint."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_syvla import SyVLAConfig, SyVLAModel
from processing import RobotDatasetWriter, build_tiny_processor

VIEWS = ("head", "left_wrist", "right_wrist")
CAMERAS = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}


@pytest.fixture
def finetune(finetune_arguments):
    """Runs `syvla-finetune` for a few steps on the recorded robot: `finetune(output, **options) -> exit status`."""
    from training.finetune import main

    return lambda *args, **options: main(finetune_arguments(*args, **options))


@pytest.fixture
def finetune_arguments(base_checkpoint, robot_dataset_path):
    """The command line of `finetune`: `finetune_arguments(output, **options) -> list of texts`."""

    def make(output, model=base_checkpoint, embodiment="two_arms", **more):
        values = {
            "model_path": model,
            "robot_datasets": json.dumps(
                {"path": str(robot_dataset_path), "embodiment": embodiment, "cameras": CAMERAS}
            ),
            "output_dir": output,
            "multimodal_share": 0.0,
            "max_steps": 3,
            "warmup_steps": 1,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            **more,
        }
        return [text for name, value in values.items() for text in (f"--{name}", str(value))]

    return make


@pytest.fixture
def robot_batch(robot_dataset_path):
    """Collates four samples of the recorded robot, the first with a thought: `robot_batch(processor) -> batch`."""
    from processing import RobotDataset

    def make(processor):
        dataset = RobotDataset(
            robot_dataset_path, embodiment="two_arms", cameras=CAMERAS, chunk_size=processor.chunk_size
        )
        return processor.collate([dataset[i] for i in (20, 0, 7, 30)])

    return make


@pytest.fixture(scope="session")
def robot_dataset_path(tmp_path_factory):
    """Three episodes of 12 frames, 14 joints, 32-pixel images; two with thoughts."""
    root = tmp_path_factory.mktemp("data") / "robot"
    rng = np.random.default_rng(0)
    features = {f"observation.images.{v}": {"dtype": "image", "shape": [32, 32, 3], "names": None} for v in VIEWS}
    for key in ("observation.state", "action"):
        features[key] = {"dtype": "float32", "shape": [14], "names": [f"joint_{i}" for i in range(14)]}
    for key, feature in features.items():
        if "images" in key:
            feature["names"] = ["height", "width", "channels"]
    with RobotDatasetWriter(root, fps=10, features=features, use_videos=False, thoughts=True) as writer:
        for episode in range(3):
            for step in range(12):
                frame = {key: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for key in features if "images" in key}
                frame["observation.state"] = rng.normal(size=14).astype(np.float32)
                frame["action"] = frame["observation.state"] + step
                writer.add_frame(frame, "lift the red cube", "reach the red cube" if episode else None)
            writer.save_episode()
    return root


@pytest.fixture(scope="session")
def multimodal_path(tmp_path_factory):
    """Eight chats about one image each."""
    folder = tmp_path_factory.mktemp("chat")
    lines = []
    for i in range(8):
        Image.new("RGB", (32, 32), (30 * i, 0, 0)).save(folder / f"{i}.png")
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many cubes?"}]}
        lines.append(json.dumps({"messages": [user, {"role": "assistant", "content": "two"}], "images": [f"{i}.png"]}))
    path = folder / "chats.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory):
    """Tiny model with random weights; its processor knows no embodiment yet."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = SyVLAConfig.tiny(embodiments={})
    SyVLAModel(config).save_pretrained(folder)
    build_tiny_processor(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """A CLIP of random weights, 32-pixel images, 16 features."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**vision, "vocab_size": 99, "max_position_embeddings": 16}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text, vision_config={**vision, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    return folder
