"""Updates of an advantage-conditioned policy: through server's rollouts, trainer and checkpoints."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")

from syvla.serving.policies.in_process import SyVLAPolicy
from syvla.training.ppo import main
from syvla.training.rl.trainer import SyVLAPPOTrainer
from syvla.training.rl.update_data import UpdateData


@pytest.fixture(scope="module")
def run(rl_options):
    """`run(output, **options)`: two updates of four rollouts each, half of them successes."""
    options = {
        **rl_options,
        "objective": "recap",
        "expert_mode": "random",
        "max_staleness": 0,
        "steps_per_update": 2,
        "value_fit_max_steps": 2,
    }

    def start(output, **more):
        arguments = {**options, "output_dir": output, **more}
        return main([text for name, value in arguments.items() for text in (f"--{name}", str(value))])

    return start


def history(folder):
    return json.loads((folder / "rl_history.json").read_text())


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """A run, what its steps read (prompts, and which samples are whose), and its updates."""
    folder = tmp_path_factory.mktemp("recap")
    read, updates = [], []
    loss, begin = SyVLAPPOTrainer.compute_loss, SyVLAPPOTrainer._begin_update

    def reading(self, model, inputs, *args, **kwargs):
        texts = self.processing_class.tokenizer.batch_decode(inputs["policy"]["input_ids"])
        read.append((texts, inputs["is_expert"].tolist(), inputs["positive"].tolist(), inputs["value"]))
        return loss(self, model, inputs, *args, **kwargs)

    def beginning(self, ids):
        begin(self, ids)
        updates.append(self.update)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SyVLAPPOTrainer, "compute_loss", reading)
        patch.setattr(SyVLAPPOTrainer, "_begin_update", beginning)
        assert run(folder, save_strategy="steps", save_steps=1) == 0
    return folder, read, updates


def test_an_update_learns_from_all_rollouts_so_far_good_and_bad(finished):
    folder, _, (first, second) = finished
    assert (first.replayed_ids, second.replayed_ids) == ([], first.episode_ids)
    assert (len(first.positive), len(second.positive)) == (12, 24), "three decisions per rollout"
    assert [update["recap/replayed_rollouts"] for update in history(folder)] == [0, 4]
    assert [update["objective/success_rate"] for update in history(folder)] == [0.5, 0.5], "of the new ones"
    for update in (first, second):
        threshold = np.quantile(update.advantages, 0.7)
        np.testing.assert_array_equal(update.positive, update.advantages > threshold)
    assert [update["buffer/staleness_max"] for update in history(folder)] == [0, 1], "an older policy's are taken"
    assert all(update["val/value_only_steps"] > 0 for update in history(folder))


def test_the_word_in_the_prompt_is_that_of_the_plan_and_experts_are_positive(finished):
    _, read, updates = finished
    seen = []
    for number, (texts, experts, positive, value) in enumerate(read):
        update, place = updates[number // 2], number % 2
        rollouts = update.rollout_plan[place, 0]
        labels = [*update.positive[rollouts], *[True] * sum(experts)]
        dropped = [*update.dropped_rollouts[place, 0], *update.dropped_experts[place, 0]]
        assert positive == labels
        assert value == {}, "the value model is not trained in these steps"
        for text, label, left in zip(texts, labels, dropped, strict=True):
            said = "none" if left else "positive" if label else "negative"
            assert [word in text for word in ("Advantage: positive", "Advantage: negative")] == [
                said == "positive",
                said == "negative",
            ]
            seen.append(said)
    assert set(seen) == {"positive", "negative", "none"}


def test_the_policy_that_comes_of_it_asks_for_good_actions_and_can_be_guided(finished):
    folder, _, _ = finished
    for name, conditioned in (("v0000", False), ("v0001", True), ("v0002", True)):
        model, processor = (kind.from_pretrained(folder / "policies" / name) for kind in (AutoModel, AutoProcessor))
        assert (model.config.advantage_conditioned, processor.advantage_conditioned) == (conditioned, conditioned)
    views = {"center": "center", "left_wrist": "left_wrist"}
    observation = {
        "images": {view: np.zeros((32, 32, 3), np.uint8) for view in views},
        "state": np.zeros(14, np.float32),
    }
    chunks = [
        SyVLAPolicy(model, processor, "two_arms", views, advantage_guidance=weight)
        .predict([observation], ["lift the red cube"], seeds=[0])
        .actions
        for weight in (None, 3.0)
    ]
    assert np.abs(chunks[0] - chunks[1]).max() > 0
    before, after = (load_file(folder / "policies" / v / "model.safetensors") for v in ("v0000", "v0002"))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("expert."))


def test_a_broken_update_goes_on_with_the_same_words(finished, run, tmp_path):
    folder, _, (_, second) = finished
    checkpoint = folder / "checkpoint-3"
    kept = UpdateData.load(checkpoint)
    for name in ("positive", "dropped_rollouts", "dropped_experts"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(second, name))
    assert run(tmp_path, resume_from_checkpoint=checkpoint) == 0
    mine, theirs = load_file(tmp_path / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_replay_can_be_bounded_and_a_person_s_corrections_are_positive(
    run, rl_options, record_rollouts, tmp_path, monkeypatch
):
    from pathlib import Path

    facts = json.loads((Path(rl_options["rollouts_path"]) / "meta" / "rollouts" / "episode-000000.json").read_text())
    record_rollouts(tmp_path / "rollouts", facts["policy_versions"][0], [1, 0, 1, 0], seed=1, corrected=4)
    words = []
    loss = SyVLAPPOTrainer.compute_loss

    def reading(self, model, inputs, *args, **kwargs):
        words.extend(inputs["positive"][inputs["is_expert"]].tolist())
        return loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SyVLAPPOTrainer, "compute_loss", reading)
    options = {"rollouts_path": tmp_path / "rollouts", "rollouts_per_update": 2, "max_replayed_rollouts": 0}
    assert run(tmp_path / "out", correction_share=1.0, indicator_dropout=0.0, **options) == 0
    updates = history(tmp_path / "out")
    assert [update["recap/replayed_rollouts"] for update in updates] == [0, 0]
    assert all(update["corrections/share"] == 1.0 for update in updates), "the experts are corrections alone"
    assert words
    assert all(words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cliprange": 0.2}, "cliprange: has no effect, since objective=recap does not read cliprange; leave it out"),
        ({"max_staleness": 2}, "max_staleness: has no effect, since objective=recap does not read max_staleness"),
        ({"vf_coef": 1.0}, "vf_coef: has no effect"),
        ({"ratio_method": "flow_sde"}, "flow_sde is no flow-matching loss"),
        ({"objective": "ppo", "advantage_quantile": 0.5}, "advantage_quantile: has no effect, since objective=ppo"),
        (
            {"objective": "imitation", "lam": 0.5, "value_learning_rate": 1e-4},
            "lam: has no effect, since objective=imit",
        ),
        (
            {"advantage_quantile": 1.0},
            "advantage_quantile, indicator_dropout: expected numbers in (0, 1) and in [0, 1)",
        ),
        ({"indicator_dropout": 1.0}, "got 0.7 and 1.0"),
        ({"max_replayed_rollouts": -1}, "max_replayed_rollouts: expected at least 0, got -1"),
    ],
)
def test_bad_settings_are_one_clear_error(run, tmp_path, capsys, change, message):
    assert run(tmp_path, **change) == 1
    assert message in capsys.readouterr().err


def test_labels_without_a_difference_publish_nothing_and_say_why(run, tmp_path):
    assert run(tmp_path, max_rl_updates=1, min_advantage_spread=5) == 0
    (update,) = history(tmp_path)
    assert "carry no information: the advantages of all decisions are alike" in update["refused"]
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert (model.config.advantage_conditioned, processor.advantage_conditioned) == (False, False), "as it began"
