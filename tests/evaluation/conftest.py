"""A checkpoint that acts, for whoever evaluates one."""

import pytest
import torch

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing.tiny_processor import build_tiny_processor


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a tiny SyVLA with random weights for the tabletop.

    Its language layers are scaled up until what it sees decides what it thinks: with the usual small weights every
    thought is empty.
    """
    torch.manual_seed(1)
    config = SyVLAConfig.tiny()
    processor = build_tiny_processor(config)
    spread = {"mean": [0.1] * 14, "std": [0.2] * 14}
    processor.set_embodiment("tabletop", {"state": spread, "action": spread})
    path = tmp_path_factory.mktemp("checkpoint")
    model = SyVLAModel(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "language_model.layers" in name and weights.ndim == 2:
                weights.mul_(30)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)
