"""The policy computes what SyVLA computes, and a saved one is the same policy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot_policy_syvla.export_checkpoint import main as export_main
from lerobot_policy_syvla.processor_syvla import MODEL_INPUT_PREFIX, load_saved_processor
from lerobot_usage import CHUNK, frames, make, observation, policy_config
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

from syvla.processing import RobotDataset

PICKED = [0, 5, 20, 15]  # with the last frames of an episode among them


@pytest.fixture(scope="module")
def parts(recording, syvla_checkpoint):
    return make(recording, policy_config(syvla_checkpoint=str(syvla_checkpoint), embodiment="tabletop"))


def load(folder):
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class("syvla").from_pretrained(folder, config=config)
    return policy, *make_pre_post_processors(config, pretrained_path=str(folder))


def test_training_batches_are_those_of_syvla(parts, recording, syvla_checkpoint):
    _, preprocessor, _, dataset = parts
    batch = preprocessor(frames(dataset, PICKED))
    ours = RobotDataset(recording, embodiment="tabletop", chunk_size=CHUNK)
    expected = AutoProcessor.from_pretrained(syvla_checkpoint).collate([ours[i] for i in PICKED])
    assert any(ours[i]["thought"] for i in PICKED)
    assert any(ours[i]["action_is_pad"].any() for i in PICKED)
    assert {key for key in batch if key.startswith(MODEL_INPUT_PREFIX)} == {
        MODEL_INPUT_PREFIX + key for key in expected
    }
    for key, value in expected.items():
        assert torch.equal(batch[MODEL_INPUT_PREFIX + key], value), key


def test_the_loss_is_the_models(parts):
    policy, preprocessor, _, dataset = parts
    batch = preprocessor(frames(dataset, PICKED))
    policy.eval()
    inputs = {key[len(MODEL_INPUT_PREFIX) :]: v for key, v in batch.items() if key.startswith(MODEL_INPUT_PREFIX)}
    torch.manual_seed(1)
    expected = policy.model(**inputs)
    torch.manual_seed(1)
    loss, values = policy(batch)
    torch.manual_seed(1)
    each, _ = policy(batch, reduction="none")
    assert torch.equal(loss, expected.loss)
    assert values == {name: expected[name].item() for name in ("action_loss", "lm_loss")}
    assert each.shape == (len(PICKED),)
    torch.testing.assert_close(each.mean(), loss)


def test_actions_are_those_of_syvla_in_physical_units(parts, syvla_checkpoint, recording):
    policy, preprocessor, postprocessor, dataset = parts
    policy.reset()
    noise = torch.randn(1, CHUNK, 14, generator=torch.Generator().manual_seed(3))
    batch = preprocessor(observation(dataset, 4))
    chunk = postprocessor(policy.predict_action_chunk(batch, noise=noise))
    steps = [postprocessor(policy.select_action(batch, noise=noise)) for _ in range(CHUNK)]

    model, processor = AutoModel.from_pretrained(syvla_checkpoint), AutoProcessor.from_pretrained(syvla_checkpoint)
    item = RobotDataset(recording, embodiment="tabletop")[4]
    given = {key: item[key] for key in ("images", "text", "state", "embodiment")}
    expected = processor.decode_actions(
        model.eval().predict_actions(**processor(**given), noise=noise).actions, "tabletop"
    )
    np.testing.assert_allclose(chunk.numpy(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.stack(steps, dim=1), chunk)
    assert steps[0].shape == (1, 14)
    assert steps[0].dtype == torch.float32


def test_a_chunk_is_executed_as_far_as_n_action_steps(recording, syvla_checkpoint):
    config = policy_config(syvla_checkpoint=str(syvla_checkpoint), embodiment="tabletop", n_action_steps=3)
    policy, preprocessor, _, dataset = make(recording, config)
    batch = preprocessor(observation(dataset, 0))
    calls = []
    policy.predict_action_chunk = lambda batch: calls.append(1) or torch.arange(CHUNK)[None, :, None].expand(1, -1, 14)
    got = [int(policy.select_action(batch)[0, 0]) for _ in range(5)]
    assert (got, len(calls)) == ([0, 1, 2, 0, 1], 2)
    policy.reset()
    assert int(policy.select_action(batch)[0, 0]) == 0


def test_it_thinks_and_says_what(parts):
    policy, preprocessor, _, dataset = parts
    batch = preprocessor(observation(dataset, 0))
    assert policy.supports_text_generation()
    text = policy.generate_text(batch, do_sample=False)
    assert isinstance(text, str)
    policy.config.think = True
    try:
        policy.predict_action_chunk(batch, do_sample=False)
    finally:
        policy.config.think = False
    assert policy.last_thoughts == [text]
    two = preprocessor(frames(dataset, [0, 1]))
    with pytest.raises(ValueError, match="takes one observation, got 2"):
        policy.generate_text(two, max_new_tokens=1)


def test_a_saved_policy_is_bit_identical(saved_policy, parts):
    policy, preprocessor, postprocessor, dataset = parts
    loaded, loaded_pre, loaded_post = load(saved_policy)
    before, after = policy.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for (
        weight
    ) in policy.parameters():  # weights mapped from a file lie unaligned in memory, and kernels round by alignment
        weight.data = weight.data.clone()
    noise = torch.randn(1, CHUNK, 14, generator=torch.Generator().manual_seed(3))
    batch, loaded_batch = preprocessor(observation(dataset, 9)), loaded_pre(observation(dataset, 9))
    chunk = postprocessor(policy.predict_action_chunk(batch, noise=noise))
    assert torch.equal(chunk, loaded_post(loaded.predict_action_chunk(loaded_batch, noise=noise)))
    assert loaded.generate_text(loaded_batch, do_sample=False) == policy.generate_text(batch, do_sample=False)


def test_it_loads_by_its_hub_id_and_revision(saved_policy, recording, tmp_path):
    """From the Hub's cache layout, in a process that sees no network; the revision holds for weights and tokenizer."""
    repository = tmp_path / "hub" / "models--me--policy"
    shutil.copytree(saved_policy, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text("0123abcd")
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import lerobot_policy_syvla
from lerobot_usage import make, observation, policy_config
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
config = PreTrainedConfig.from_pretrained("me/policy", revision="v2")
policy = get_policy_class("syvla").from_pretrained("me/policy", config=config, revision="v2")
pre, _ = make_pre_post_processors(config, pretrained_path="me/policy", pretrained_revision="v2")
from lerobot.datasets.lerobot_dataset import LeRobotDataset
dataset = LeRobotDataset("local/recording", root={str(recording)!r})
print(repr(policy.generate_text(pre(observation(dataset, 0)), max_new_tokens=2)))
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1][0] in "'\""


def test_a_loaded_policy_saves_the_same_files(saved_policy, tmp_path):
    for part in load(saved_policy):
        part.save_pretrained(tmp_path)
    for path in saved_policy.iterdir():
        again = tmp_path / path.name
        if path.name == "model.safetensors":
            old, new = load_file(path), load_file(again)
            assert old.keys() == new.keys()
            assert all(torch.equal(old[key], new[key]) for key in old)
        elif path.suffix == ".json":
            assert json.loads(path.read_text()) == json.loads(again.read_text()), path.name
        else:
            assert path.read_bytes() == again.read_bytes(), path.name


def test_a_policy_is_never_silently_random(saved_policy):
    config = PreTrainedConfig.from_pretrained(saved_policy)
    config.syvla_checkpoint = None
    with pytest.raises(ValueError, match="there are no weights"):
        get_policy_class("syvla")(config)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_weights_are_never_silently_missing(saved_policy, tmp_path, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(saved_policy, folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.action_queries.weight"
    if damage == "missing":
        del weights[name]
    elif damage == "unexpected":
        name = "model.invented.weight"
        weights[name] = torch.zeros(1)
    else:
        weights[name] = weights[name][:2].clone()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match=name):
        load(folder)


def test_the_way_back_to_transformers(saved_policy, syvla_checkpoint, tmp_path, capsys):
    output = tmp_path / "exported"
    export_main([str(saved_policy), str(output)])
    assert str(output) in capsys.readouterr().out
    before, after = (AutoModel.from_pretrained(path).state_dict() for path in (syvla_checkpoint, output))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    old, new = (AutoProcessor.from_pretrained(path) for path in (syvla_checkpoint, output))
    assert old.embodiments == new.embodiments
    assert old.tokenizer.get_vocab() == new.tokenizer.get_vocab()
    with pytest.raises(FileExistsError, match="is not empty"):
        export_main([str(saved_policy), str(output)])


def test_statistics_come_from_the_checkpoint_unless_asked_otherwise(recording, syvla_checkpoint):
    exact = RobotDataset(recording, embodiment="tabletop").statistics()
    for source, mode in (("auto", "quantile"), ("checkpoint", "quantile"), ("dataset", "mean_std")):
        config = policy_config(syvla_checkpoint=str(syvla_checkpoint), embodiment="tabletop", statistics=source)
        _, preprocessor, postprocessor, _ = make(recording, config)
        robot = preprocessor.steps[3].processor.embodiments["tabletop"]
        assert robot["normalization"]["state"] == mode
        assert {key: robot["statistics"]["state"][key] for key in exact["state"]} == exact["state"]
        assert postprocessor.steps[1].normalization == robot["normalization"]["action"]


def test_a_new_robot_is_added_to_the_checkpoint(recording, syvla_checkpoint, tmp_path):
    config = policy_config(syvla_checkpoint=str(syvla_checkpoint), embodiment="my_robot", normalization="min_max")
    policy, preprocessor, postprocessor, dataset = make(recording, config)
    assert policy.model.config.embodiments["my_robot"] == {"id": 2, "state_dim": 14, "action_dim": 14}
    batch = preprocessor(frames(dataset, PICKED))
    assert batch[f"{MODEL_INPUT_PREFIX}embodiment_ids"].tolist() == [2] * len(PICKED)
    loss, _ = policy(batch)
    loss.backward()
    for part in (policy, preprocessor, postprocessor):
        part.save_pretrained(tmp_path)
    assert load(tmp_path)[0].model.config.embodiments == policy.model.config.embodiments
    assert load_saved_processor(str(tmp_path)).embodiments["my_robot"]["normalization"]["action"] == "min_max"


def test_robots_and_cameras_that_do_not_fit_are_named(recording, syvla_checkpoint):
    path = str(syvla_checkpoint)
    with pytest.raises(ValueError, match=r"embodiment: the checkpoint knows \['other_robot', 'tabletop'\]"):
        make(recording, policy_config(syvla_checkpoint=path))
    with pytest.raises(ValueError, match="'other_robot' with 6 state and 7 action dimensions, the data has 14 and 14"):
        make(recording, policy_config(syvla_checkpoint=path, embodiment="other_robot"))
    cameras = {"center": "observation.images.top"}
    with pytest.raises(ValueError, match=r"cameras: .*observation\.images\.top.* are no cameras of the data"):
        make(recording, policy_config(syvla_checkpoint=path, embodiment="tabletop", cameras=cameras))
    cameras = {"roof": "observation.images.head"}
    with pytest.raises(ValueError, match=r"unknown views \['roof'\]"):
        make(recording, policy_config(syvla_checkpoint=path, embodiment="tabletop", cameras=cameras))
    with pytest.raises(ValueError, match="thought_source: 'note' is no text column"):
        make(recording, policy_config(syvla_checkpoint=path, embodiment="tabletop", thought_source="note"))


def test_thoughts_are_left_out_on_request(recording, syvla_checkpoint):
    config = policy_config(syvla_checkpoint=str(syvla_checkpoint), embodiment="tabletop", thought_source=None)
    _, preprocessor, _, dataset = make(recording, config)
    labels = preprocessor(frames(dataset, PICKED))[f"{MODEL_INPUT_PREFIX}labels"]
    assert (labels == -100).all()


def test_batches_that_did_not_pass_the_preprocessor_are_refused(parts):
    policy, preprocessor, _, dataset = parts
    with pytest.raises(ValueError, match="run it through the policy's preprocessor"):
        policy.select_action(observation(dataset, 0))
    batch = observation(dataset, 0)
    batch["observation.images.head"] = batch["observation.images.head"].permute(0, 2, 3, 1)
    with pytest.raises(ValueError, match=r"observation.images.head: expected \(B, 3, H, W\)"):
        preprocessor(batch)
