"""The README's snippets run as they stand, in the order in which they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_stand_in import HubStandIn
from pretrained_parts import save_vision_tower, save_vlm

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import build_tiny_processor
from syvla.training.hub.model_card import write_model_card

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

PREAMBLE = """
import numpy as np
head, left, right = (np.full((32, 32, 3), value, np.uint8) for value in (30, 60, 90))
joints = np.zeros(14, np.float32)
"""
EPILOGUE = """
assert actions.shape == (1, processor.chunk_size, 14) and np.isfinite(actions).all()
assert isinstance(output.thoughts[0], str) and isinstance(answer, str)
assert adapted.get_nb_trainable_parameters()[0] < model.num_parameters() // 2
assert AutoModel.from_pretrained("outputs/assembled").config.embodiments["my_robot"]["action_dim"] == 7
assert AutoProcessor.from_pretrained("outputs/assembled").num_query_tokens == 20
"""


def snippets(heading: str) -> list[str]:
    """Python blocks below a second-level heading."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def save_demo_checkpoint(folder: Path) -> None:
    """What `make demo` leaves, with random weights."""
    config = SyVLAConfig.tiny()
    processor = build_tiny_processor(config)
    statistics = {"mean": np.zeros(14), "std": np.ones(14)}
    processor.set_embodiment("tabletop", {"state": statistics, "action": statistics})
    SyVLAModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_model_card(folder, config, processor, {})


@pytest.mark.slow
def test_use_it_runs(tmp_path):
    """Six snippets: load and act, think, ask, adapt, assemble, push."""
    blocks = snippets("Use it")
    assert len(blocks) == 6
    save_demo_checkpoint(tmp_path / "outputs" / "demo" / "checkpoint")
    save_vlm(tmp_path / "Qwen2.5-VL-3B-Instruct", files=True)
    save_vision_tower(tmp_path / "siglip-base-patch16-224", files=True)
    with HubStandIn.running() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
        script = PREAMBLE + "\n".join(blocks) + EPILOGUE
        run = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr[-3000:]
        assert {"config.json", "model.safetensors", "modeling_syvla.py", "README.md"} <= hub.files(
            "model/me/my-policy"
        ).keys()
