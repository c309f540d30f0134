"""Settings of the whole suite and the tiny model, processor and samples that many tests share."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A run of the tests is one of this checkout, installed or not; so are the processes that tests start.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

try:
    import numpy as np
    import torch

    import syvla
except ModuleNotFoundError as error:
    sys.exit(f"tests: {error.name} is missing; type: {sys.executable} -m pip install -e '{ROOT}[test]'")
if Path(syvla.__file__).resolve().parents[1] != ROOT:
    sys.exit(f"tests: `syvla` is {syvla.__file__} and not that of {ROOT}; take its folder off PYTHONPATH")

# Tiny tensors gain nothing from a second thread, and threads that spin while they wait for a busy core make a test 30
# times slower. The variable holds for the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

torch.set_num_threads(1)

# Two robots of different dimensions, so that every batch has something to pad.
ROBOTS = {"tabletop": {"state_dim": 14, "action_dim": 14}, "arm": {"state_dim": 3, "action_dim": 2}}


@pytest.fixture
def make_model():
    """Builds `SyVLAModel(SyVLAConfig.tiny(embodiments=ROBOTS, **overrides))` with fixed weights, in evaluation mode.

    `expert` overrides fields of the tiny expert config.
    """
    from syvla.modeling_syvla import SyVLAConfig, SyVLAExpertConfig, SyVLAModel

    def make(seed: int = 0, expert: dict | None = None, **overrides):
        if expert:
            fields = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 32}
            overrides["expert_config"] = SyVLAExpertConfig(**{**fields, "ff_multiple_of": 32, **expert})
        torch.manual_seed(seed)
        return SyVLAModel(SyVLAConfig.tiny(**{"embodiments": ROBOTS, **overrides})).eval()

    return make


@pytest.fixture
def tiny_model(make_model):
    return make_model()


@pytest.fixture
def tiny_processor():
    """The tiny processor with statistics for both robots, in the order of the model's ids."""
    from syvla.modeling_syvla import SyVLAConfig
    from syvla.processing import build_tiny_processor

    processor = build_tiny_processor(SyVLAConfig.tiny())
    rng = np.random.default_rng(7)
    for name, robot in ROBOTS.items():
        statistics = {
            kind: {"mean": rng.normal(size=robot[f"{kind}_dim"]), "std": rng.uniform(0.5, 2, robot[f"{kind}_dim"])}
            for kind in ("state", "action")
        }
        processor.set_embodiment(name, statistics)
    return processor


@pytest.fixture
def make_item():
    """Builds a robot item as `RobotDataset` returns it: random images, states and actions that depend on `seed` alone."""

    def make(seed: int = 0, embodiment: str = "tabletop", views=("center", "left_wrist", "right_wrist"), **changes):
        rng = np.random.default_rng(seed)
        robot = ROBOTS[embodiment]
        images = {v: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for v in ("center", "left_wrist", "right_wrist")}
        item = {
            "images": {view: images[view] for view in views},
            "text": "lift the red cube",
            "thought": None,
            "embodiment": embodiment,
            "state": rng.normal(size=robot["state_dim"]).astype(np.float32),
            "actions": rng.normal(size=(8, robot["action_dim"])).astype(np.float32),
            "action_is_pad": np.zeros(8, dtype=bool),
        }
        return {**item, **changes}

    return make


@pytest.fixture
def unequal_items(make_item):
    """Three samples that differ in robot, views, instruction, thought and padding."""
    ends = np.arange(8) >= 5
    return [
        make_item(1, thought="reach the red cube with the left arm"),
        make_item(2, "arm", ["center"], text="put the green bar on the pad, please", action_is_pad=ends),
        make_item(3, views=["center", "right_wrist"], text="hold"),
    ]


@pytest.fixture
def make_chat():
    """Builds a multi-modal item: a question about one random image and its answer."""

    def make(seed: int = 0, question: str = "How many cubes are there?", answer: str = "three", size=(32, 48)):
        image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        asked = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return {"messages": messages, "images": [image]}

    return make
