"""Updates of a tiny policy on recorded rollouts, from the command and from the trainer."""

import json
import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")

from syvla.modeling_syvla import SyVLAModel, SyVLAValueModel
from syvla.serving.policies.loading import weights_digest
from syvla.serving.rl.ledger import CONSUMED, SET_ASIDE, Ledger
from syvla.training.ppo import main
from syvla.training.rl.trainer import SyVLAPPOTrainer


@pytest.fixture(scope="module")
def policy(rl_policy):
    return rl_policy


@pytest.fixture
def run(rl_options):
    """`run(output, **options) -> exit status` of syvla-ppo."""
    return lambda output, **more: main(arguments(rl_options, output_dir=output, **more))


def arguments(options, **more):
    return [text for name, value in {**options, **more}.items() for text in (f"--{name}", str(value))]


def history(folder):
    return json.loads((folder / "rl_history.json").read_text())


def steps_of(folder):
    return [entry for entry in json.loads((folder / "log_history.json").read_text()) if "loss" in entry]


def weights(folder):
    return load_file(folder / "model.safetensors"), load_file(folder / "value_model" / "model.safetensors")


def same(a, b):
    return all(torch.equal(a[i][name], b[i][name]) for i in range(2) for name in a[i])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, rl_options):
    folder = tmp_path_factory.mktemp("finished")
    assert main(arguments(rl_options, output_dir=folder, save_strategy="steps", save_steps=1)) == 0
    return folder


# ---------------------------------------------------------------------- a whole run


def test_a_run_publishes_a_policy_per_update_and_leaves_loadable_checkpoints(finished, policy):
    latest = json.loads((finished / "policies" / "LATEST.json").read_text())
    published = AutoModel.from_pretrained(finished / "policies" / "v0002")
    assert (latest["version"], latest["path"]) == (2, "v0002")
    assert latest["policy_version"] == weights_digest(published)
    assert [p.name for p in sorted((finished / "policies").glob("v*"))] == ["v0000", "v0001", "v0002"]
    first = AutoModel.from_pretrained(finished / "policies" / "v0000")
    assert weights_digest(first) == weights_digest(SyVLAModel.from_pretrained(policy))
    model, processor = AutoModel.from_pretrained(finished), AutoProcessor.from_pretrained(finished)
    assert weights_digest(model) == latest["policy_version"]
    assert processor.disagreements(model.config) == []
    assert type(AutoModel.from_pretrained(finished / "value_model")) is SyVLAValueModel
    assert (finished / "value_model" / "value_fit.json").is_file()
    card = (finished / "README.md").read_text()
    assert "rollouts' success by update: [0.5, 0.5]" in card
    assert all(text in card for text in ("- ppo\n", "trainer: SyVLA-PPO", "ratio method: fpo", "policy/cfm_heldout"))
    assert not list(finished.glob("*.bin"))
    updates = history(finished)
    assert [u["version"] for u in updates] == [1, 2]
    assert all(u["objective/success_rate"] == 0.5 and u["refused"] is None for u in updates)
    assert all(abs(u[f"objective/advantage_rollout_{end}"]) <= 0.8 for u in updates for end in ("min", "max"))
    assert all(u["objective/advantage_expert_mean"] == 1.0 for u in updates)


def test_the_ratio_is_one_before_the_first_step_of_every_update(finished):
    steps = steps_of(finished)
    for first in (steps[0], steps[3]):
        assert first["val/ratio"] == pytest.approx(1.0, abs=1e-4)
        assert first["policy/clipfrac_avg"] == 0
        assert max(abs(first["policy/logratio_min"]), first["policy/logratio_max"]) < 1e-3
    assert steps[2]["val/ratio_var"] > 1e-6


METRICS = {
    *(
        "objective/kl",
        "objective/scores",
        "objective/rlhf_reward",
        "objective/non_score_reward",
        "objective/success_rate",
    ),
    *(f"objective/advantage_{part}_{what}" for part in ("rollout", "expert") for what in ("mean", "min", "max")),
    "objective/frac_adv_clipped",
    *("policy/approxkl_avg", "policy/clipfrac_avg", "policy/logratio_min", "policy/logratio_max", "policy/cfm_rollout"),
    *("policy/cfm_expert", "policy/cfm_heldout", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg", "val/ratio"),
    *("val/ratio_var", "val/explained_variance", "grad_norm/policy", "grad_norm/value", "retrieval/sim_mean"),
    *("retrieval/sim_min", "retrieval/unique_frac", "buffer/staleness_mean", "buffer/staleness_max"),
    *("buffer/set_aside_total", "decoupling/masked_fraction", "lr", "episode", "eps"),
}


def test_every_metric_of_the_vocabulary_is_logged(finished):
    logged = {key for entry in json.loads((finished / "log_history.json").read_text()) for key in entry}
    assert logged >= METRICS, METRICS - logged
    assert steps_of(finished)[0]["decoupling/masked_fraction"] == pytest.approx(1 / 8)


def test_the_run_can_be_watched_on_its_page(finished):
    text = (finished / "index.html").read_text()
    shown = set(re.findall(r'aria-label="([^"]*)"', text))
    assert {"objective: success_rate", "objective: advantage_rollout", "policy: logratio", "Learning rate"} <= shown
    assert ">finished</em> step 6 of 6" in text


@pytest.mark.parametrize("step", [1, 3, 4])
def test_resuming_anywhere_gives_the_unbroken_run_bit_for_bit(finished, run, tmp_path, step):
    """Steps 1 and 4 lie within an update, step 3 between two; everything is recomputed or read back exactly."""
    checkpoint = finished / f"checkpoint-{step}"
    assert (checkpoint / "rl_update.safetensors").is_file() == (step != 3)
    assert run(tmp_path, resume_from_checkpoint=checkpoint, retrieval_path=finished / "retrieval") == 0
    assert same(weights(tmp_path), weights(finished))
    assert history(tmp_path)[-1]["version"] == 2
    a, b = steps_of(tmp_path)[-1], steps_of(finished)[-1]
    assert (a["loss"], a["policy/cfm_expert"]) == (b["loss"], b["policy/cfm_expert"])


def test_started_again_it_goes_on_by_itself(finished, run, tmp_path):
    """The newest checkpoint of the output folder is found; a policy that a crash kept back is published."""
    output = tmp_path / "out"
    output.mkdir()
    shutil.copytree(finished / "checkpoint-3", output / "checkpoint-3")
    state = json.loads((output / "checkpoint-3" / "rollout_state.json").read_text())
    assert state["published"] is False, "the checkpoint is written before the policy is handed over"
    assert run(output) == 0
    assert same(weights(output), weights(finished))
    assert sorted(p.name for p in (output / "policies").glob("v*")) == ["v0001", "v0002"]
    assert run(output) == 0, "a run that is over ends at once"
    assert same(weights(output), weights(finished))


def test_settings_that_an_update_was_prepared_with_may_not_change(finished, run, tmp_path, capsys):
    assert run(tmp_path, resume_from_checkpoint=finished / "checkpoint-1", num_flow_samples=3) == 1
    assert "settings changed: num_flow_samples was 2, is 3" in capsys.readouterr().err


def test_settings_that_changed_between_updates_hold_in_the_next_one(finished, run, tmp_path):
    """Resumed after an update with other settings, and killed within the next one, it goes on with those."""
    changed = {
        "retrieval_path": finished / "retrieval",
        "num_flow_samples": 3,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    assert run(tmp_path / "a", resume_from_checkpoint=finished / "checkpoint-3", **changed) == 0
    assert run(tmp_path / "b", resume_from_checkpoint=tmp_path / "a" / "checkpoint-5", **changed) == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


# ---------------------------------------------------------------------- guards


def test_steps_without_finite_gradients_are_skipped_then_the_update_is_given_up(run, tmp_path, policy, monkeypatch):
    whole = SyVLAPPOTrainer.compute_loss
    bad = {2, 4, 5, 6}

    def spoiled(self, *args, **kwargs):
        loss = whole(self, *args, **kwargs)
        return loss * (math.nan if self.state.global_step + 1 in bad else 1.0)

    monkeypatch.setattr(SyVLAPPOTrainer, "compute_loss", spoiled)
    options = {"save_strategy": "steps", "save_steps": 1, "max_skipped_steps": 3, "encoder": f"policy:{policy}"}
    assert run(tmp_path, **options) == 0
    saved = [weights(tmp_path / f"checkpoint-{step}") for step in (1, 2, 3)]
    assert same(saved[0], saved[1]), "step 2 changed nothing"
    assert not same(saved[1], saved[2])
    first, second = history(tmp_path)
    assert first["refused"] is None
    assert second["refused"] == "gradients were not finite"
    assert (second["version"], second["policy/published"]) == (1, 0.0)
    assert all(torch.equal(saved[2][0][name], weights(tmp_path)[0][name]) for name in saved[2][0]), "restored"


def test_a_policy_that_drifts_is_not_published_but_restored(run, tmp_path, policy):
    assert run(tmp_path, guard_heldout_cfm=0.01, max_rl_updates=1) == 0
    (update,) = history(tmp_path)
    assert "held-out loss" in update["refused"]
    assert update["policy/cfm_heldout"] > 0
    assert json.loads((tmp_path / "policies" / "LATEST.json").read_text())["version"] == 0
    before, (after, _) = SyVLAModel.from_pretrained(policy).state_dict(), weights(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in after)


def test_an_update_whose_advantages_say_nothing_is_not_published_and_says_why(run, tmp_path):
    """The value model of random weights gives a success no higher advantages; it takes its value-only steps all the same."""
    options = {"min_advantage_spread": 5, "value_fit_max_steps": 3, "value_fit_threshold": 0.99}
    assert run(tmp_path, max_rl_updates=1, **options) == 0
    (update,) = history(tmp_path)
    assert update["refused"].startswith(
        "its advantages carry no information: the advantages of all decisions are alike"
    )
    assert (update["version"], update["steps"], update["val/value_only_steps"]) == (0, 1, 3.0)
    assert json.loads((tmp_path / "policies" / "LATEST.json").read_text())["version"] == 0
    assert update["intention_decoupling"] is True, "the run's own setting"
    card = (tmp_path / "README.md").read_text()
    assert all(name in card for name in ("val/calibration_error_heldout", "objective/advantage_share[-0.1,0.1)"))
    shares = [value for name, value in update.items() if name.startswith("objective/advantage_share")]
    assert sum(shares) == pytest.approx(1.0)


def test_an_update_ends_when_the_kl_is_too_large(run, tmp_path):
    assert run(tmp_path, target_kl=1e-9, max_rl_updates=1, steps_per_update=6) == 0
    (update,) = history(tmp_path)
    assert update["policy/stopped_by_kl"] == 1.0
    assert update["steps"] < 6


# ---------------------------------------------------------------------- rollouts


def test_a_run_ends_when_no_rollouts_come(run, tmp_path):
    """Eight rollouts are two updates of four; the third one waits, and consumes nothing."""
    assert run(tmp_path, max_rl_updates=3, steps_per_update=1) == 0
    assert len(history(tmp_path)) == 2
    assert json.loads((tmp_path / "rollout_state.json").read_text())["updates"] == 2


def test_unlabeled_and_stale_rollouts_do_not_train(run, policy, record_rollouts, tmp_path):
    version = weights_digest(SyVLAModel.from_pretrained(policy))
    record_rollouts(tmp_path / "mixed", version, [1, None, 0, None, 1, 0, 1, 0], seed=1)
    assert run(tmp_path / "out", rollouts_path=tmp_path / "mixed", max_staleness=0, steps_per_update=1) == 0
    state = json.loads((tmp_path / "out" / "rollout_state.json").read_text())
    assert [name[-1] for name in state["consumed"]] == ["0", "2", "4", "5"]
    assert len(history(tmp_path / "out")) == 1, "the other two are of version 0, one behind"
    known = Ledger(tmp_path / "out").read()
    aside = {name[-1]: entry.why for name, entry in known.rollouts.items() if entry.state == SET_ASIDE}
    assert sorted(aside) == ["6", "7"]
    assert all(why.startswith("too old: 1 version(s) behind") for why in aside.values())
    assert len(known.names(CONSUMED)) == 4


def test_rollouts_of_another_policy_are_refused(run, record_rollouts, tmp_path, capsys):
    record_rollouts(tmp_path / "foreign", "somebody else's", [1] * 4)
    assert run(tmp_path / "out", rollouts_path=tmp_path / "foreign") == 1
    error = capsys.readouterr().err
    assert "this run never published" in error
    assert "record into a folder of its own" in error


# ---------------------------------------------------------------------- ablations and options


@pytest.mark.parametrize(
    "options",
    [
        {"expert_mode": "none"},
        {"expert_mode": "random", "same_task": False},
        {"expert_advantages": "gae", "decision_steps": 5},
        {"approximate_index": "HNSW8"},
        {"objective": "imitation", "value_learning_rate": 1e-4},
        {"intention_decoupling": False, "use_thoughts": False},
        {"average_flow_samples": True, "trust_region": "aspo", "clamp_old_cfm": 50.0},
        {"gradient_accumulation_steps": 2, "num_value_only_steps": 1, "gradient_checkpointing": True},
        {"adapter": "lora", "adapter_rank": 4},
        {"freeze": "vlm"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_switches(run, policy, tmp_path, options):
    assert run(tmp_path, max_rl_updates=1, steps_per_update=2, **options) == 0
    (update,) = history(tmp_path)
    steps = steps_of(tmp_path)
    published = SyVLAModel.from_pretrained(tmp_path / "policies" / "v0001")
    before = SyVLAModel.from_pretrained(policy).state_dict()
    changed = {name for name, weight in published.state_dict().items() if not torch.equal(weight, before[name])}
    assert any(name.startswith("expert.") for name in changed)
    if "expert_mode" in options:
        assert "retrieval/sim_mean" not in update
        assert ("policy/cfm_expert" in steps[0]) == (options["expert_mode"] == "random")
    assert ("retrieval/recall" in update) == ("approximate_index" in options)
    if "approximate_index" in options:
        assert 0.5 < update["retrieval/recall"] <= 1.0
        assert any(step.get("retrieval/recall") == update["retrieval/recall"] for step in steps)
    if "expert_advantages" in options:
        assert update["objective/advantage_expert_min"] < update["objective/advantage_expert_max"]
    if "objective" in options:
        assert "val/ratio" not in steps[0]
        assert "policy/cfm_rollout" not in steps[0]
    assert ("decoupling/masked_fraction" in steps[-1]) == options.get("intention_decoupling", True)
    if "num_value_only_steps" in options:
        assert "policy/cfm_expert" not in steps[0]
        assert "policy/cfm_expert" in steps[1]
    if options.get("freeze") == "vlm":
        assert not any(name.startswith("vlm.") for name in changed)
    if "adapter" in options:
        assert (tmp_path / "adapter_model.safetensors").is_file()
        assert any(name.startswith("vlm.model.language_model") for name in changed)


def test_expert_samples_become_more_likely(run, tmp_path):
    """Advantage 1 on experts is imitation within a trust region: the loss on held-out experts, at fixed points, falls."""
    assert run(tmp_path, max_rl_updates=1, steps_per_update=24, expert_ratio=0.75, cliprange=10.0) == 0
    (update,) = history(tmp_path)
    baseline = json.loads((tmp_path / "rollout_state.json").read_text())["baseline_cfm"]
    assert update["policy/cfm_heldout"] < 0.9 * baseline


def test_a_resumed_adapter_is_the_unbroken_one(run, tmp_path):
    options = {"adapter": "lora", "adapter_rank": 4, "max_rl_updates": 1, "save_strategy": "steps", "save_steps": 1}
    assert run(tmp_path / "whole", **options) == 0
    assert run(tmp_path / "resumed", resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2", **options) == 0
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_model_path": ""}, "model_path, value_model_path and robot_datasets: all are needed"),
        ({"value_model_path": "POLICY"}, "a value model for reinforcement learning comes from syvla-value-warmup"),
        ({"ratio_method": "flow_sde"}, "holds no step of a stochastic sampler"),
        ({"expert_ratio": 1.0}, "expert_ratio: 1.0 of 4 samples leaves no rollout or no expert sample"),
        ({"objective": "imitation", "expert_mode": "none"}, "objective: imitation needs expert samples"),
        ({"objective": "imitation", "ratio_method": "flow_sde"}, "flow_sde is no flow-matching loss"),
        ({"fp16": True}, "fp16: likelihood ratios need float32 losses"),
        ({"max_grad_norm": 0}, "max_grad_norm: expected a positive number"),
        ({"rollout_cameras": "["}, "rollout_cameras: expected a JSON object"),
        ({"approximate_index": "IVF8Flat"}, "approximate_index: FAISS makes no index of 'IVF8Flat' and"),
        ({"expert_mode": "similar", "encoder": "resnet"}, "encoder: expected 'open_clip:NAME:WEIGHTS'"),
        ({"robot_datasets": '{"path": "x", "embodiment": "arm"}'}, "embodiment 'arm' is unknown to the checkpoint"),
    ],
)
def test_bad_input_is_one_clear_error(run, policy, tmp_path, capsys, change, message):
    change = {key: str(policy) if v == "POLICY" else v for key, v in change.items()}
    assert run(tmp_path, **change) == 1
    assert message in capsys.readouterr().err


def test_a_new_run_into_a_used_folder_is_refused_and_replaces_nothing(run, tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"another run's")
    assert run(tmp_path, resume_from_checkpoint="none") == 1
    error = capsys.readouterr().err
    assert "holds the weights of a finished run (model.safetensors)" in error
    assert "overwrite_output_dir" in error
    assert (tmp_path / "model.safetensors").read_bytes() == b"another run's"


def test_a_task_without_demonstrations_is_refused_unless_all_tasks_count(
    run, policy, record_rollouts, tmp_path, capsys
):
    version = weights_digest(SyVLAModel.from_pretrained(policy))
    record_rollouts(tmp_path / "other", version, [1, 0, 1, 0], instruction="fold the shirt")
    options = {"rollouts_path": tmp_path / "other", "max_rl_updates": 1, "steps_per_update": 1}
    assert run(tmp_path / "a", **options) == 1
    assert "there are no demonstrations of its task 'fold the shirt'" in capsys.readouterr().err
    assert run(tmp_path / "b", same_task=False, **options) == 0
