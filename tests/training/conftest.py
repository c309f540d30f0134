"""A small recorded dataset and an untrained tiny checkpoint."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import RobotDatasetWriter, build_tiny_processor

VIEWS = ("head", "left_wrist", "right_wrist")
CAMERAS = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}


@pytest.fixture
def finetune(finetune_arguments):
    """Runs `syvla-finetune` for a few steps on the recorded robot: `finetune(output, **options) -> exit status`."""
    from syvla.training.finetune import main

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
    from syvla.processing import RobotDataset

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


ROBOT = {"two_arms": {"state_dim": 14, "action_dim": 14}}


@pytest.fixture(scope="session")
def rl_policy(robot_dataset_path, tmp_path_factory):
    """Tiny policy of random weights that knows the recorded robot with its statistics."""
    from syvla.processing import RobotDataset

    folder = tmp_path_factory.mktemp("policy")
    config = SyVLAConfig.tiny(embodiments=ROBOT)
    torch.manual_seed(0)
    SyVLAModel(config).save_pretrained(folder)
    processor = build_tiny_processor(config)
    dataset = RobotDataset(robot_dataset_path, embodiment="two_arms", cameras=CAMERAS)
    processor.set_embodiment("two_arms", dataset.statistics())
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rl_value(rl_policy, tmp_path_factory):
    """Tiny value model of random weights that fits `rl_policy`."""
    from transformers import AutoProcessor

    from syvla.modeling_syvla import SyVLAValueConfig, SyVLAValueModel
    from syvla.training.rl.value_fit import write_fit

    folder = tmp_path_factory.mktemp("value")
    torch.manual_seed(1)
    SyVLAValueModel(SyVLAValueConfig.tiny(embodiments=ROBOT)).save_pretrained(folder)
    write_fit(folder, AutoProcessor.from_pretrained(rl_policy), {"gamma": 0.99}, ["two_arms"])
    return folder


@pytest.fixture(scope="session")
def record_rollouts():
    """`record(folder, policy_version, outcomes)`: three decisions per rollout, five actions of each chunk executed.

    With `corrected` a person takes over after the second decision, for so many control steps.
    """
    from syvla.serving.recording.decision import Decision
    from syvla.serving.recording.recorder import RolloutRecorder

    def record(folder, version, outcomes, *, seed=0, instruction="lift the red cube", corrected=0):
        rng = np.random.default_rng(seed)
        recorder = RolloutRecorder(folder, fps=10, embodiment="two_arms", assumed_steps=5)
        for number, outcome in enumerate(outcomes):
            for step in range(3):
                state = rng.normal(size=14).astype(np.float32)
                decision = Decision(
                    images={c: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for c in VIEWS[:2]},
                    state=state,
                    instruction=instruction,
                    embodiment="two_arms",
                    chunk=(state + rng.normal(size=(8, 14))).astype(np.float32),
                    seed=100 * number + step,
                    policy_version=version,
                    thought="reach the red cube" if number % 2 else None,
                )
                recorder.record("robot", decision, episode_id=f"{version} {seed} {number}")
                for _ in range(corrected if step == 1 else 0):
                    state = rng.normal(size=14).astype(np.float32)
                    recorder.observe("robot", decision.images, state, correction=state + 1, executed=5)
            recorder.end("robot", outcome=outcome)
        recorder.close()

    return record


@pytest.fixture(scope="session")
def rl_options(rl_policy, rl_value, robot_dataset_path, record_rollouts, tmp_path_factory):
    """Options of `syvla-ppo`: two updates of three steps on eight rollouts of `rl_policy`, half of them successes."""
    from syvla.serving.policies.loading import weights_digest

    rollouts = tmp_path_factory.mktemp("rollouts") / "set"
    record_rollouts(rollouts, weights_digest(SyVLAModel.from_pretrained(rl_policy)), [1, 0] * 4)
    return {
        "model_path": rl_policy,
        "value_model_path": rl_value,
        "robot_datasets": json.dumps({"path": str(robot_dataset_path), "cameras": CAMERAS}),
        "rollouts_path": rollouts,
        "rollout_cameras": json.dumps(CAMERAS),
        "encoder": f"policy:{rl_policy}",
        "rollouts_per_update": 4,
        "max_rl_updates": 2,
        "max_staleness": 5,
        "wait_timeout_s": 0,
        "steps_per_update": 3,
        "per_device_train_batch_size": 4,
        "num_flow_samples": 2,
        "learning_rate": 1e-3,
        "value_learning_rate": 1e-3,
        "guard_heldout_cfm": 10,
        "target_kl": 0,
        "value_fit_max_steps": 0,
        "min_advantage_spread": 0,
        "guard_samples": 8,
        "save_total_limit": 9,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    }
