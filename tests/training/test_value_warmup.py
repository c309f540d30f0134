"""`syvla-value-warmup` on recorded episodes, and the check that a value model belongs to a policy."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import RobotDataset, RobotDatasetWriter, build_tiny_processor
from syvla.training.rl.value_fit import read_fit, run_discount, value_model_problems
from syvla.training.rl.value_inputs import value_inputs
from syvla.training.value_warmup import ReturnDataset, main

TINY = json.dumps({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32})


@pytest.fixture(scope="module")
def reaching(tmp_path_factory):
    """Twelve episodes of 8 to 15 frames in which state and picture say how far the end is; every fourth one fails."""
    root = tmp_path_factory.mktemp("reaching") / "data"
    features = {name: {"dtype": "float32", "shape": [3], "names": None} for name in ("observation.state", "action")}
    features["observation.images.head"] = {"dtype": "image", "shape": [32, 32, 3], "names": ["h", "w", "c"]}
    features["next.success"] = {"dtype": "bool", "shape": [1], "names": None}
    rng = np.random.default_rng(0)
    with RobotDatasetWriter(root, fps=10, features=features, use_videos=False) as writer:
        for episode in range(12):
            length, won = int(rng.integers(8, 16)), episode % 4 != 0
            for step in range(length):
                left = (length - step) / 10
                state = np.array([left, won, rng.normal()], np.float32)
                frame = {"observation.state": state, "action": state}
                frame["observation.images.head"] = np.full((32, 32, 3), int(120 * left), np.uint8)
                writer.add_frame({**frame, "next.success": np.array([won and step == length - 1])}, "reach")
            writer.save_episode()
    return root


@pytest.fixture(scope="module")
def policy(reaching, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    config = SyVLAConfig.tiny(embodiments={"reacher": {"state_dim": 3, "action_dim": 3}})
    torch.manual_seed(0)
    SyVLAModel(config).save_pretrained(folder)
    processor = build_tiny_processor(config)
    processor.set_embodiment("reacher", RobotDataset(reaching, embodiment="reacher").statistics())
    processor.save_pretrained(folder)
    return folder


def options(policy, data, output, **more):
    values = {
        "policy_path": policy,
        "robot_datasets": json.dumps({"path": str(data), "cameras": {"center": "observation.images.head"}}),
        "output_dir": output,
        "value_overrides": TINY,
        "gamma": 0.97,
        "heldout_share": 0.25,
        "max_steps": 60,
        "warmup_steps": 5,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 16,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **more,
    }
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def warmed(policy, reaching, tmp_path_factory):
    folder = tmp_path_factory.mktemp("value")
    assert main(options(policy, reaching, folder)) == 0
    return folder


def test_values_of_held_out_episodes_are_explained(warmed):
    report = json.loads((warmed / "value_warmup.json").read_text())
    assert report["explained_variance"] > 0.6
    assert report["explained_variance"] > report["explained_variance_before"]
    assert (report["episodes"], report["successes"]) == (12, 9)
    assert "explained_variance" in (warmed / "README.md").read_text()
    assert not list(warmed.glob("*.bin"))


def test_the_saved_model_tells_success_from_failure(warmed, policy, reaching):
    model = AutoModel.from_pretrained(warmed).eval()
    processor = AutoProcessor.from_pretrained(policy)
    dataset = RobotDataset(reaching, embodiment="reacher", cameras={"center": "observation.images.head"})
    last = dataset.episode_starts + dataset.episode_lengths - 1
    with torch.no_grad():
        values = model(**value_inputs(processor, model.config, [dataset[int(row)] for row in last])).value
    won = torch.arange(12) % 4 != 0
    assert values[won].min() > values[~won].max()


def test_image_encoder_starts_from_the_policys(policy, reaching, tmp_path):
    assert main(options(policy, reaching, tmp_path, max_steps=1, learning_rate=0.0)) == 0
    value, mine = AutoModel.from_pretrained(tmp_path), AutoModel.from_pretrained(policy)
    theirs = mine.expert.vision_tower.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in value.vision_tower.state_dict().items())


def test_targets_are_discounted_outcomes_of_whole_episodes(reaching):
    dataset = RobotDataset(reaching, embodiment="reacher", chunk_size=4)
    rewards = np.array([float(i % 4 != 0) for i in range(12)])
    part = ReturnDataset(dataset, [0, 5], rewards, gamma=0.9)
    first, length = int(dataset.episode_lengths[0]), int(dataset.episode_lengths[5])
    assert len(part) == first + length
    assert not part.returns[:first].any(), "episode 0 failed"
    assert part[len(part) - 1]["returns"] == 1.0
    assert part[first]["returns"] == pytest.approx(0.9 ** (length - 1))
    assert {part[i]["episode_index"] for i in range(first, len(part))} == {5}


def test_a_run_takes_over_the_discount_of_its_value_model_and_refuses_another_one(warmed):
    fit = read_fit(warmed)
    assert fit["training"]["discount"] == 0.97
    assert run_discount(None, fit, 4) == run_discount(0.97, fit, 4) == 0.97
    with pytest.raises(
        ValueError, match=r"a discount of 0.97 per control step, this run asks for 0.99; leave gamma out"
    ):
        run_discount(0.99, fit, 4)
    former = {"training": {"gamma": 0.99, "decision_steps": 10}}
    assert run_discount(None, former, 50) ** 10 == pytest.approx(0.99), "one per decision is converted"
    assert run_discount(None, {"training": {"gamma": 0.99}}, 50) ** 50 == pytest.approx(0.99)
    assert run_discount(None, None, 50) ** 50 == pytest.approx(0.99)


def test_a_value_model_of_another_robot_or_other_statistics_is_refused(warmed, policy, reaching):
    processor = AutoProcessor.from_pretrained(policy)
    config = AutoModel.from_pretrained(warmed).config
    assert value_model_problems(warmed, config, processor, ["reacher"]) == []
    processor.embodiments["reacher"]["statistics"]["state"]["mean"][0] += 0.1
    assert "other statistics" in value_model_problems(warmed, config, processor, ["reacher"])[0]
    processor.embodiments["other"] = processor.embodiments["reacher"]
    assert "never trained on it" in value_model_problems(warmed, config, processor, ["other"])[0]
    processor.expert_image_processor.image_mean = [0.1, 0.2, 0.3]
    assert "images" in value_model_problems(warmed, config, processor, [])[0]
    with pytest.raises(ValueError, match="comes from syvla-value-warmup"):
        value_model_problems(policy, config, processor, ["reacher"])


def test_going_on_with_a_value_model(warmed, policy, reaching, tmp_path):
    arguments = options(policy, reaching, tmp_path, value_model_path=warmed, max_steps=1)
    assert main(arguments) == 0
    report = json.loads((tmp_path / "value_warmup.json").read_text())
    assert report["explained_variance_before"] > 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy_path": ""}, "policy_path and robot_datasets: both are needed"),
        ({"value_overrides": '{"depth": 3}'}, "['depth'] are no fields of SyVLAValueConfig"),
        ({"value_overrides": "{"}, "value_overrides: expected JSON"),
        ({"heldout_share": 1.0}, "heldout_share: expected a number between 0 and 1"),
        ({"outcome_key": "reward"}, "has no feature 'reward'"),
        ({"robot_datasets": '{"path": "x", "embodiment": "other"}'}, "embodiment 'other' is unknown to the checkpoint"),
    ],
)
def test_bad_input_is_one_clear_error(policy, reaching, tmp_path, capsys, change, message):
    assert main(options(policy, reaching, tmp_path, **change)) == 1
    assert message in capsys.readouterr().err
