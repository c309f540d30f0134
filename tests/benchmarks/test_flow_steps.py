"""The error of fewer flow steps: none against itself, less with more steps."""

import json

import pytest
import torch

from benchmarks import flow_steps, reporting
from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import build_tiny_processor


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(1)
    config = SyVLAConfig.tiny()
    processor = build_tiny_processor(config)
    spread = {"mean": [0.1] * 14, "std": [0.2] * 14}
    processor.set_embodiment("tabletop", {"state": spread, "action": spread})
    SyVLAModel(config).save_pretrained(tmp_path / "policy")
    processor.save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy")


def test_error_against_fifty_steps(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("mujoco", reason="the tabletop needs the extra sim")
    monkeypatch.setattr(reporting, "RESULTS", tmp_path / "results")
    steps = ["1", "5", "25", "50"]
    flow_steps.main(["--checkpoint", checkpoint, "--observe", "1", "--steps", *steps, "--device", "cpu"])
    result = json.loads((tmp_path / "results" / "flow_steps.json").read_text())
    (section,) = result["devices"].values()
    errors = [section["errors"][n]["rms"] for n in steps]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0 == errors[3]
    assert section["rms_between_noise_draws"] > errors[2]
