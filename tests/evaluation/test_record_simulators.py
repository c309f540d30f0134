"""`syvla-record` on the simulators: what `RobotDataset` reads back is what the expert saw, did and thought."""

import json

import numpy as np
import pytest
from simulators import libero_assets, make_or_skip, run_expert

from syvla.evaluation.demonstration_recording import main
from syvla.processing import RobotDataset

CASES = {
    "metaworld": ("drawer-open-v3", 80, {"center", "left_wrist", "right_wrist"}),
    "aloha": ("insertion", 50, {"center", "left_wrist", "right_wrist"}),
    "libero": ("libero_object_0", 20, {"center", "left_wrist"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_recording_reads_back(name, tmp_path, capsys):
    task, fps, views = CASES[name]
    env = make_or_skip(name, task)
    info, thoughts, steps = run_expert(env, 0)
    env.close()
    options = ["--env-option", "look=fast"]
    options += ["--env-option", f"assets={libero_assets()}"] if name == "libero" else []
    output = tmp_path / "data"
    command = ["--env", name, "--task", task, "--episodes", "1", "--image-size", "32", "--output", str(output)]
    assert main([*command, *options]) == 0
    assert f"{task}: 1 episodes, {steps} frames" in capsys.readouterr().out
    dataset = RobotDataset(output, embodiment=name, chunk_size=4)
    assert (len(dataset), dataset.fps) == (steps, fps)
    assert tuple(dataset.action_names) == env.action_names
    items = [dataset[i] for i in range(len(dataset))]
    assert {item["text"] for item in items} == {info["instruction"]}
    assert list(dict.fromkeys(item["thought"] for item in items)) == thoughts
    assert set(items[0]["images"]) == views
    moved = {view: np.any(items[0]["images"][view] != items[-1]["images"][view]) for view in views}
    assert all(moved.values()), moved
    assert items[0]["state"].shape == (len(env.state_names),)
    description = json.loads((output / "recording.json").read_text())["summary"]["environment"]
    assert description == env.description


def test_failures_are_kept_on_request(tmp_path):
    make_or_skip("metaworld", "reach-v3").close()
    command = ["--env", "metaworld", "--task", "reach-v3", "--image-size", "8", "--episodes", "2", "--keep-failures"]
    assert (
        main([*command, "--output", str(tmp_path / "data"), "--env-option", "max_steps=3", "--env-option", "look=fast"])
        == 0
    )
    content = json.loads((tmp_path / "data" / "recording.json").read_text())
    kept = [(attempt["success"], attempt["episode_index"]) for attempt in content["attempts"]]
    assert kept == [(False, 0), (False, 1)]
    assert content["summary"]["failures"] == content["summary"]["episodes"] == 2
    assert RobotDataset(tmp_path / "data", embodiment="metaworld", chunk_size=2).num_episodes == 2
