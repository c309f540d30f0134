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


def test_error_against_many_steps(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("mujoco", reason="the tabletop needs the extra sim")
    monkeypatch.setattr(reporting, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(flow_steps, "REFERENCE_STEPS", 50)
    steps = ["1", "5", "25", "50"]
    arguments = ["--checkpoint", checkpoint, "--observe", "1", "--steps", *steps, "--device", "cpu"]
    flow_steps.main([*arguments, "--solvers", "euler:1", "ab2:2"])
    result = json.loads((tmp_path / "results" / "flow_steps.json").read_text())
    (section,) = result["devices"].values()
    errors = [section["errors"]["euler:1"][n]["rms"] for n in steps]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0 == errors[3]
    assert section["errors"]["ab2:2"]["1"]["rms"] == pytest.approx(errors[0]), "one step is Euler's on any grid"
    assert 0 < section["errors"]["ab2:2"]["5"]["rms"] != errors[1]
    assert section["rms_between_noise_draws"] > errors[2]
    assert (tmp_path / "results" / "flow_steps.png").stat().st_size > 5000
