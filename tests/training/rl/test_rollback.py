"""A rollback reaches the trainer: between updates, within one, and after a restart; with all weights and with an adapter."""

import json

import pytest

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")

from syvla.serving.policies.loading import weights_digest
from syvla.serving.rl.ledger import CLAIMED, CONSUMED, Ledger
from syvla.serving.rl.published_policies import read_latest
from syvla.training.ppo import main
from syvla.training.rl.checkpoint import merged_policy
from syvla.training.rl.policy_publisher import FolderPublisher
from syvla.training.rl.trainer import SyVLAPPOTrainer


@pytest.fixture
def run(rl_options, tmp_path, monkeypatch):
    """`run(**options) -> the weights with which each update began`, of a run into `tmp_path`; one rollout and step each."""

    def go(**more):
        begun, begin = [], SyVLAPPOTrainer._begin_update

        def noted(self, ids):
            begun.append((weights_digest(merged_policy(self._module.policy)), self.optimizer.state and "moments"))
            begin(self, ids)

        with monkeypatch.context() as patch:
            patch.setattr(SyVLAPPOTrainer, "_begin_update", noted)
            options = {**rl_options, "output_dir": tmp_path, "rollouts_per_update": 1, "steps_per_update": 1, **more}
            assert main([text for name, value in options.items() for text in (f"--{name}", str(value))]) == 0
        return begun

    return go


def back_to(ledger, version):
    ledger.write("rollback", version=version, policy_version=ledger.read().versions[version], before=None)


@pytest.mark.parametrize("options", [{}, {"adapter": "lora", "adapter_rank": 4}], ids=["whole", "adapter"])
def test_the_run_goes_on_from_the_older_weights(run, tmp_path, monkeypatch, options):
    publish = FolderPublisher.publish

    def then_back(self, version, *rest):
        publish(self, version, *rest)
        if version == 2:
            back_to(Ledger(tmp_path), 1)

    monkeypatch.setattr(FolderPublisher, "publish", then_back)
    begun = run(max_rl_updates=3, **options)
    known, state = Ledger(tmp_path).read(), json.loads((tmp_path / "rollout_state.json").read_text())
    versions = known.versions
    assert len(set(versions)) == 4
    assert [weights for weights, _ in begun] == [versions[0], versions[1], versions[1]]
    assert known.lineage == state["lineage"] == [0, 1, 3]
    assert read_latest(tmp_path / "policies").version == 3
    assert len(known.names(CONSUMED)) == 3


def test_a_rollback_while_no_trainer_runs_holds_after_the_restart(run, tmp_path):
    run(max_rl_updates=2)
    ledger = Ledger(tmp_path)
    back_to(ledger, 1)
    begun = run(max_rl_updates=3)
    versions = ledger.read().versions
    assert [weights for weights, _ in begun] == [versions[1]]
    assert ledger.read().lineage == [0, 1, 3]
    assert run(max_rl_updates=3) == [], "it is followed once"
    assert ledger.read().lineage == [0, 1, 3]


def test_an_update_that_is_under_way_is_given_up_and_its_rollouts_are_kept(run, tmp_path, monkeypatch):
    loss, given_up = SyVLAPPOTrainer.compute_loss, []

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 3 and not given_up:
            given_up.extend(self.ledger.read().names(CLAIMED))
            back_to(self.ledger, 0)
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(SyVLAPPOTrainer, "compute_loss", interrupted)
    begun = run(max_rl_updates=2, steps_per_update=2, max_steps=20)
    known = Ledger(tmp_path).read()
    assert [weights for weights, _ in begun] == [known.versions[number] for number in (0, 1, 0)]
    assert known.lineage == [0, 2]
    (name,) = given_up
    assert known.rollouts[name].state == CONSUMED, "it was of version 0 and made the second try"
    assert [entry["version"] for entry in json.loads((tmp_path / "rl_history.json").read_text())] == [1, 2]


def test_a_rollback_to_a_policy_that_is_gone_is_an_error_that_says_so(rl_options, run, tmp_path, capsys):
    run(max_rl_updates=3, keep_policies=1)
    back_to(Ledger(tmp_path), 0)
    options = {**rl_options, "output_dir": tmp_path, "rollouts_per_update": 1, "max_rl_updates": 4}
    assert main([text for name, value in options.items() for text in (f"--{name}", str(value))]) == 1
    assert "rollback: version: " in capsys.readouterr().err
