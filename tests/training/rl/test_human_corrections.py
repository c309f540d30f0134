"""Corrections of people in an update: they join the experts, are aggregated over updates, and survive a broken run."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")

import torch

from syvla.training.ppo import main


@pytest.fixture
def run(rl_options, record_rollouts, tmp_path):
    """`run(output, **options)`: two updates of two rollouts each, in three of which a person acts for four control steps."""
    facts = json.loads((Path(rl_options["rollouts_path"]) / "meta" / "rollouts" / "episode-000000.json").read_text())
    (version,) = facts["policy_versions"]
    record_rollouts(tmp_path / "rollouts", version, [1, 0, 1], seed=1, corrected=4)
    record_rollouts(tmp_path / "rollouts", version, [1], seed=2)
    options = {
        "rollouts_path": tmp_path / "rollouts",
        "expert_mode": "random",
        "rollouts_per_update": 2,
        "steps_per_update": 2,
    }

    def start(output, **more):
        arguments = {**rl_options, **options, "output_dir": output, **more}
        return main([text for name, value in arguments.items() for text in (f"--{name}", str(value))])

    return start


def history(folder):
    return json.loads((folder / "rl_history.json").read_text())


@pytest.mark.parametrize("objective", ["ppo", "dagger"])
def test_corrections_join_the_experts_and_are_kept_for_later_updates(run, tmp_path, objective):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"objective": objective, "correction_share": 0.5}
    if objective == "dagger":
        options |= {"value_learning_rate": 1e-4, "value_model_path": ""}  # it has no value model
    assert run(whole, save_strategy="steps", save_steps=1, **options) == 0
    first, second = history(whole)
    assert (first["corrections/frames"], second["corrections/frames"]) == (8, 12), (
        "2, then 1 rollout with 4 control steps"
    )
    assert (first["objective/takeover_rate"], second["objective/takeover_rate"]) == (1.0, 0.5)
    assert (first["objective/success_rate"], second["objective/success_rate"]) == (0.0, 0.5), "the policy's own"
    assert all(0 < update["corrections/share"] < 1 for update in (first, second))
    assert all(update["objective/advantage_expert_mean"] == 1.0 for update in (first, second))
    assert run(broken, resume_from_checkpoint=whole / "checkpoint-3", **options) == 0, (
        "in the middle of the second update"
    )
    mine, theirs = load_file(broken / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert (whole / "value_model").exists() == (objective == "ppo")
    assert ("val/explained_variance" in first) == ("objective/advantage_std" in first) == (objective == "ppo")


def test_dagger_needs_no_labels(run, rl_options, record_rollouts, tmp_path):
    """Two rollouts that nobody has labeled are an update; whoever learns from outcomes waits for their labels."""
    facts = json.loads((Path(rl_options["rollouts_path"]) / "meta" / "rollouts" / "episode-000000.json").read_text())
    record_rollouts(tmp_path / "unlabeled", facts["policy_versions"][0], [None, None], corrected=4)
    options = {"rollouts_path": tmp_path / "unlabeled", "max_rl_updates": 1, "steps_per_update": 1}
    assert run(tmp_path / "ppo", **options) == 0
    assert history(tmp_path / "ppo") == []
    dagger = {"objective": "dagger", "value_learning_rate": 1e-4, "value_model_path": ""}
    assert run(tmp_path / "dagger", **options, **dagger) == 0
    (update,) = history(tmp_path / "dagger")
    assert (update["objective/success_rate"], update["corrections/frames"], update["version"]) == (None, 8, 1)
    assert "rollouts' success by update: [None]" in (tmp_path / "dagger" / "README.md").read_text()


def test_settings_that_would_have_no_effect_are_refused(run, tmp_path, capsys):
    assert run(tmp_path / "one", objective="dagger", correction_share=0) == 1
    assert "objective=dagger needs corrections; set it above 0" in capsys.readouterr().err
    assert run(tmp_path / "two", correction_share=1.5) == 1
    assert "correction_share: expected a share from 0 to 1, got 1.5" in capsys.readouterr().err
    assert run(tmp_path / "three", takeover_failed_decisions=0) == 1
    assert "takeover_failed_decisions: expected at least 1, got 0" in capsys.readouterr().err
