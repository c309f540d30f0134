"""Updates with `rollout_advantages="group"`: whole rollouts against one another, without a value model."""

import json

import numpy as np
import pytest

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")

from syvla.training.ppo import main
from syvla.training.rl.update_data import UpdateData


@pytest.fixture
def run(rl_options):
    unread = ("value_model_path", "value_learning_rate")
    plain = {name: value for name, value in rl_options.items() if name not in unread}
    options = {**plain, "rollout_advantages": "group", "max_rl_updates": 1, "steps_per_update": 2}

    def start(output, **more):
        arguments = {**options, "expert_mode": "none", "output_dir": output, **more}
        return main([text for name, value in arguments.items() for text in (f"--{name}", str(value))])

    return start


def test_an_update_without_value_model_and_experts(run, tmp_path):
    """Two successes and two failures: (1 - 1/2) / sqrt(1/3), the same for every decision of a rollout."""
    assert run(tmp_path, save_strategy="steps", save_steps=1, advantage_clip=4) == 0
    logged = [entry for entry in json.loads((tmp_path / "log_history.json").read_text()) if "loss" in entry]
    assert logged[0]["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert logged[1]["val/ratio_var"] > 0, "the policy has moved"
    assert logged[0]["grad_norm/policy"] > 0
    assert "loss/value_avg" not in logged[0]
    update = UpdateData.load(tmp_path / "checkpoint-1")
    outcome = np.array([1, 1, 1, -1, -1, -1] * 2)  # three decisions each
    np.testing.assert_allclose(update.advantages, outcome * 0.5 / np.sqrt(1 / 3), atol=1e-6)
    assert json.loads((tmp_path / "rl_history.json").read_text())[0]["version"] == 1
    shown = json.loads(next((tmp_path / "guidance").glob("*.json")).read_text())["decisions"]
    assert all("advantage" in one and "value" not in one for one in shown)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam": 0.5}, "lam: has no effect, since rollout_advantages=group does not read lam"),
        (
            {"expert_mode": "random", "expert_advantages": "gae"},
            "rollout_advantages=group does not read expert_advantages",
        ),
        ({"objective": "dagger", "expert_mode": "random"}, "since objective=dagger does not read rollout_advantages"),
        ({"objective": "recap"}, "since objective=recap does not read max_staleness, rollout_advantages"),
        ({"rollout_advantages": "gae"}, "value_model_path and robot_datasets: all are needed"),
    ],
)
def test_bad_settings_are_one_clear_error(run, tmp_path, capsys, change, message):
    assert run(tmp_path, **change) == 1
    assert message in capsys.readouterr().err
