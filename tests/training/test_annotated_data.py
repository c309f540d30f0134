"""What `syvla-annotate` wrote is what think-before-act trains on."""

import json
import shutil

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

from syvla.processing import RobotDataset
from syvla.processing.annotation.annotator import Annotator
from syvla.processing.annotation.episode_data import EpisodeData
from syvla.training.finetune import main


def test_annotated_episodes_train_thoughts(finetune_arguments, robot_dataset_path, tmp_path):
    root = tmp_path / "annotated"
    shutil.copytree(robot_dataset_path, root)
    annotator = Annotator(EpisodeData(root))
    annotator.change("clear", {episode: [] for episode in range(3)})
    annotator.close()
    spec = {"path": str(root), "embodiment": "two_arms", "cameras": {"center": "observation.images.head"}}

    def losses(name):
        arguments = finetune_arguments(tmp_path / name, robot_datasets=json.dumps(spec), max_steps=2)
        assert main(arguments) == 0
        log = json.loads((tmp_path / name / "log_history.json").read_text())
        return [entry.get("lm_loss") for entry in log if "loss" in entry]

    assert losses("without") == [None, None]
    annotator = Annotator(EpisodeData(root))
    subtasks = [[0, "reach the red cube"], [6, "lift the red cube"]]
    annotator.change("mark", dict.fromkeys(range(3), subtasks))
    annotator.close()
    dataset = RobotDataset(root, embodiment="two_arms", chunk_size=4)
    assert [dataset.thought_at(index) for index in (12, 17, 18, 23)] == [text for _, text in subtasks for _ in range(2)]
    found = losses("with")
    assert len(found) == 2
    assert all(loss > 0 for loss in found)
    model, processor = (kind.from_pretrained(tmp_path / "with") for kind in (AutoModel, AutoProcessor))
    view = {"center": np.zeros((32, 32, 3), np.uint8)}
    inputs = processor(images=view, text="lift the red cube", state=np.zeros(14, np.float32))
    with torch.no_grad():
        output = model.predict_actions(**inputs, think=True, max_new_tokens=8)
    assert isinstance(output.thoughts[0], str)
