"""Updates with `objective="nft"`: velocities of the policy before the update are what its negatives are bounded by."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")

from syvla.training.ppo import main
from syvla.training.rl.trainer import SyVLAPPOTrainer
from syvla.training.rl.update_data import UpdateData


@pytest.fixture
def run(rl_options):
    options = {**rl_options, "objective": "nft", "expert_mode": "random", "max_rl_updates": 1, "steps_per_update": 2}

    def start(output, **more):
        arguments = {**options, "output_dir": output, **more}
        return main([text for name, value in arguments.items() for text in (f"--{name}", str(value))])

    return start


def test_an_update_begins_at_the_old_velocities_and_goes_on_where_it_was_broken_off(run, tmp_path, monkeypatch):
    """Before the first step v is v_old, so both errors are the flow-matching loss, whatever the advantage."""
    steps = []
    loss = SyVLAPPOTrainer.compute_loss

    def reading(self, model, inputs, *args, **kwargs):
        result = loss(self, model, inputs, *args, **kwargs)
        with torch.no_grad():
            outputs = model(policy=inputs["policy"], points=inputs["points"], decoupling=self.args.intention_decoupling)
        steps.append((outputs, inputs))
        return result

    monkeypatch.setattr(SyVLAPPOTrainer, "compute_loss", reading)
    assert run(tmp_path / "whole", save_strategy="steps", save_steps=1) == 0
    (outputs, inputs), *_ = steps
    torch.testing.assert_close(outputs["velocity"], inputs["old_velocities"], atol=1e-4, rtol=0)
    counted = inputs["policy"]["action_mask"].any(-1).sum(-1)
    expected = float((-outputs["scores"] / counted[:, None]).mean())
    logged = [e for e in json.loads((tmp_path / "whole" / "log_history.json").read_text()) if "loss" in e]
    assert logged[0]["loss/policy_avg"] == pytest.approx(expected, rel=1e-4)
    assert logged[0]["nft/velocity_change"] < 1e-4 < logged[1]["nft/velocity_change"]
    assert "val/ratio" not in logged[0]
    assert logged[0]["loss/value_avg"] > 0, "the value model learns beside it"
    kept = UpdateData.load(tmp_path / "whole" / "checkpoint-1")
    assert kept.old_velocities.shape == (12, 2, 8, 14), "decisions, points, steps, dimensions"
    assert np.abs(kept.old_velocities).max() > 0
    monkeypatch.undo()
    assert run(tmp_path / "broken", resume_from_checkpoint=tmp_path / "whole" / "checkpoint-1") == 0
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("broken", "whole"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dual_clip": 2.0}, "dual_clip: has no effect, since objective=nft does not read dual_clip"),
        ({"objective": "ppo", "nft_beta": 0.5}, "nft_beta: has no effect, since objective=ppo"),
        ({"nft_beta": 0.0}, "nft_beta: expected a positive number, got 0.0"),
        ({"ratio_method": "flow_sde"}, "by which objective=nft trains"),
    ],
)
def test_bad_settings_are_one_clear_error(run, tmp_path, capsys, change, message):
    assert run(tmp_path, **change) == 1
    assert message in capsys.readouterr().err
