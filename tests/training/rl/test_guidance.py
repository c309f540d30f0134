"""What guided an update, as the page shows it: compared with the update's own figures and with the demonstrations."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")

from syvla.processing import RobotDataset
from syvla.serving.rl.playback import read_guidance
from syvla.training.ppo import main


def test_every_decision_of_an_update_has_its_value_and_its_similar_samples(rl_options, robot_dataset_path, tmp_path):
    options = {**rl_options, "output_dir": tmp_path, "max_rl_updates": 1, "steps_per_update": 1, "retrieval_top_k": 3}
    assert main([text for name, value in options.items() for text in (f"--{name}", str(value))]) == 0
    (update,) = json.loads((tmp_path / "rl_history.json").read_text())
    consumed = json.loads((tmp_path / "rollout_state.json").read_text())["consumed"]
    files = [read_guidance(tmp_path, name) for name in consumed]
    assert [(file["update"], len(file["decisions"])) for file in files] == [(0, 3)] * 4
    told = [decision for file in files for decision in file["decisions"]]
    assert [decision["control_step"] for decision in told] == [0, 5, 10] * 4
    advantages = [decision["advantage"] for decision in told]
    assert np.mean(advantages) == pytest.approx(update["objective/advantage_rollout_mean"], abs=1e-4)
    assert max(advantages) == pytest.approx(update["objective/advantage_rollout_max"], abs=1e-4)
    assert len({decision["value"] for decision in told}) == 12
    similarities = np.array([[one["similarity"] for one in decision["experts"]] for decision in told])
    assert similarities.shape == (12, 3)
    assert (np.diff(similarities, axis=1) <= 1e-4).all(), "the most similar first"
    assert similarities.mean() == pytest.approx(update["retrieval/sim_mean"], abs=1e-4)
    cameras = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}
    dataset = RobotDataset(robot_dataset_path, embodiment="two_arms", cameras=cameras)
    one = told[0]["experts"][0]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["picture"].partition(",")[2]))))
    frame = dataset.read_image(one["view"], 12 * one["episode"] + one["frame"])
    assert (one["dataset"], shown.shape) == (robot_dataset_path.name, frame.shape)
    others = [dataset.read_image(one["view"], row) for row in range(len(dataset))]
    distances = [np.abs(shown.astype(float) - other).mean() for other in others]
    assert int(np.argmin(distances)) == 12 * one["episode"] + one["frame"], "the picture is of the frame that is named"
