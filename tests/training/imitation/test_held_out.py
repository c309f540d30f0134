"""The held-out loss depends on the held-out set alone, and equals one that is computed sample by sample."""

import copy
import json

import numpy as np
import pytest
import torch

from syvla.processing import MultimodalDataset
from syvla.training import SyVLATrainer, SyVLATrainingArguments
from syvla.training.imitation.held_out import (
    HeldOutBatches,
    HeldOutSamples,
    held_out_noise_and_time,
)
from syvla.training.imitation.open_loop_callback import OpenLoopCallback


class Items(list):
    """A dataset of items with a name."""

    def __init__(self, items, name):
        super().__init__(items)
        self.name = name


@pytest.fixture
def held_out(make_item, make_chat):
    """Two robots and chats; thoughts and answers of unequal length."""
    ends = np.arange(8) >= 5
    lift = [make_item(i, thought="reach " * i or None, action_is_pad=ends if i % 2 else ends & False) for i in range(5)]
    chats = [make_chat(i, answer="one " * (1 + 3 * i)) for i in range(3)]
    return HeldOutSamples([Items(lift, "lift"), Items([make_item(9, "arm")], "pour")], [Items(chats, "chats")])


@pytest.fixture
def evaluate(make_model, tiny_processor, tmp_path):
    """Measures with settings that must not matter: `evaluate(data, **arguments) -> metrics`."""

    def run(data, model=None, **arguments):
        args = SyVLATrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, **arguments)
        trainer = SyVLATrainer(model or make_model(), args, processing_class=tiny_processor, eval_dataset=data)
        return trainer.evaluate()

    return run


def by_hand(model, processor, data):
    """Losses of each sample alone, with noise and time drawn anew here, and their plain means."""
    model = copy.deepcopy(model).eval()
    actions, tokens = [], []
    for index in range(len(data)):
        source, position = data.place(index)
        item = data.datasets[source][position]
        batch = processor.collate([item])
        if "messages" not in item:
            seed = np.random.SeedSequence((20_260_609, position)).generate_state(1, dtype=np.uint64)
            generator = torch.Generator().manual_seed(int(seed[0]))
            batch["noise"] = torch.randn(1, 8, 14, generator=generator)
            uniform = torch.rand(1, generator=generator)
            batch["timestep"] = model.config.time_max * (1 - uniform ** (1 / model.config.time_beta_alpha))
        with torch.no_grad():
            outputs = model(**batch)
        if "messages" not in item:
            actions.append((data.datasets[source].name, item["embodiment"], outputs.action_loss_per_sample.item()))
        for total, count in zip(outputs.lm_loss_sums.tolist(), outputs.label_tokens.tolist(), strict=True):
            tokens.append(("messages" in item, total, count))
    return actions, tokens


def mean(values):
    return sum(values) / len(values)


def test_losses_are_the_plain_means_over_all_samples(held_out, evaluate, make_model, tiny_processor):
    model = make_model()
    actions, tokens = by_hand(model, tiny_processor, held_out)
    found = evaluate(held_out, model)
    thoughts, answers = ([(s, n) for chat, s, n in tokens if chat == side] for side in (False, True))
    thought_loss, answer_loss = (sum(s for s, _ in part) / sum(n for _, n in part) for part in (thoughts, answers))
    expected = {
        "eval_action_loss": mean([loss for *_, loss in actions]),
        "eval_action_loss_by_embodiment/arm": mean([loss for _, robot, loss in actions if robot == "arm"]),
        "eval_action_loss_by_source/lift": mean([loss for name, _, loss in actions if name == "lift"]),
        "eval_lm_loss": thought_loss,
        "eval_vlm_loss": answer_loss,
        "eval_lm_loss_by_source/chats": answer_loss,
    }
    expected["eval_loss"] = (
        model.config.action_loss_weight * expected["eval_action_loss"] + model.config.lm_loss_weight * thought_loss
    )
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["eval_samples"] == 9
    assert len({round(loss, 5) for *_, loss in actions}) == 6


@pytest.mark.parametrize(
    "arguments",
    [
        {"per_device_eval_batch_size": 1},
        {"per_device_eval_batch_size": 2, "seed": 5, "data_seed": 7},
        {"per_device_eval_batch_size": 4, "gradient_accumulation_steps": 3, "length_bucket": 64},
        {"per_device_eval_batch_size": 8, "dataloader_num_workers": 1},
    ],
)
def test_batch_size_seed_and_accumulation_do_not_matter(arguments, held_out, evaluate):
    expected, found = evaluate(held_out), evaluate(held_out, **arguments)
    losses = [name for name in expected if "loss" in name]
    assert len(losses) >= 12
    for name in losses:
        assert found[name] == pytest.approx(expected[name], rel=2e-5, abs=2e-6), name


def test_every_process_has_as_many_batches_and_every_sample_counts_once():
    for size, batch_size, world in ((9, 2, 2), (1, 4, 3), (8, 8, 1), (7, 3, 4)):
        shares = [list(HeldOutBatches(size, batch_size, rank, world)) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        counted = [index for share in shares for batch in share for index, counts in batch if counts]
        assert sorted(counted) == list(range(size))


def test_sums_of_processes_with_padding_are_those_of_one(held_out, evaluate, make_model, tiny_processor, tmp_path):
    """Three processes of which the last ones are filled up; their sums are added as gathering would."""
    model = make_model()
    expected = evaluate(held_out, model)
    args = SyVLATrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True)
    trainer = SyVLATrainer(model, args, processing_class=tiny_processor, eval_dataset=held_out)
    sums = []
    for rank in range(3):
        trainer._losses = trainer._new_losses(held_out)
        loader = trainer.get_eval_dataloader()
        for keys in HeldOutBatches(len(held_out), 2, rank, 3):
            batch = loader.collate_fn([loader.dataset[key] for key in keys])
            trainer.prediction_step(model.eval(), batch, True)
        sums.append(trainer._losses.sums)
    found = trainer._losses.report(lambda _: torch.stack(sums))
    for name, value in found.items():
        assert expected[f"eval_{name}"] == pytest.approx(value, rel=2e-5, abs=2e-6), name


def test_times_follow_the_training_distribution_and_each_sample_keeps_its_own(make_model):
    config = make_model().config
    places = torch.tensor([[i, 1] for i in range(400)])
    noise, times = held_out_noise_and_time(places, config)
    alone = held_out_noise_and_time(places[17:18], config)
    assert torch.equal(alone[0][0], noise[17])
    assert torch.equal(alone[1][0], times[17])
    # E[time_max (1 - U^(1/alpha))] = time_max / (1 + alpha)
    assert times.mean().item() == pytest.approx(config.time_max / (1 + config.time_beta_alpha), abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.01)


def test_a_loss_that_is_not_finite_is_not_hidden(held_out, evaluate, make_item):
    bad = make_item(1)
    bad["actions"] = bad["actions"] * np.float32(1e30)
    found = evaluate(HeldOutSamples([Items([make_item(0), bad], "lift")]))
    assert not np.isfinite(found["eval_loss"])


def test_a_limited_set_is_spread_over_its_datasets(make_item):
    data = HeldOutSamples([Items(range(10), "a"), Items(range(3), "b")], max_samples=5)
    assert [data.place(i) for i in range(len(data))] == [
        *((0, position) for position in (0, 2, 4, 6, 8)),
        *((1, position) for position in (0, 1, 2)),
    ]


def test_training_is_the_same_with_and_without_evaluation(held_out, make_model, tiny_processor, make_item, tmp_path):
    losses = []
    for name, options in (("plain", {}), ("measured", {"eval_steps": 1, "eval_on_start": True})):
        args = SyVLATrainingArguments(
            str(tmp_path / name),
            use_cpu=True,
            disable_tqdm=True,
            max_steps=3,
            warmup_steps=0,
            logging_steps=1,
            **options,
        )
        data = [make_item(i) for i in range(8)]
        trainer = SyVLATrainer(
            make_model(), args, processing_class=tiny_processor, train_dataset=data, eval_dataset=held_out
        )
        trainer.train()
        losses.append([e["loss"] for e in trainer.state.log_history if "loss" in e])
        measured = [e["step"] for e in trainer.state.log_history if "eval_loss" in e]
        assert measured == ([0, 1, 2, 3] if options else [])
    assert losses[0] == losses[1]


def test_an_unknown_metric_is_refused_before_training(held_out, make_model, tiny_processor, tmp_path):
    options = {"eval_steps": 1, "save_steps": 1, "save_strategy": "steps", "load_best_model_at_end": True}
    args = SyVLATrainingArguments(str(tmp_path), use_cpu=True, metric_for_best_model="eval_accuracy", **options)
    with pytest.raises(ValueError, match=r"'eval_accuracy' is not measured.*action_loss_by_source/lift"):
        SyVLATrainer(make_model(), args, processing_class=tiny_processor, eval_dataset=held_out)


def test_a_function_is_called_on_held_out_data_while_training_goes_on(
    held_out, make_model, tiny_processor, make_item, tmp_path
):
    seen = []

    def measure(policy, processor, dataset):
        seen.append((policy.training, processor is tiny_processor, dataset.name))
        return {"error": 0.5}

    args = SyVLATrainingArguments(
        str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=3, warmup_steps=0, logging_steps=1
    )
    trainer = SyVLATrainer(
        make_model(), args, processing_class=tiny_processor, train_dataset=[make_item(i) for i in range(8)]
    )
    trainer.add_callback(OpenLoopCallback(trainer, measure, held_out.robot_datasets, ["lift", "pour"], 2))
    trainer.train()
    assert seen == [(False, True, "lift"), (False, True, "pour")] * 2
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_open_loop/lift/error" in entry]
    assert steps == [2, 3]
    assert [e["step"] for e in trainer.state.log_history if "loss" in e] == [1, 2, 3]
    assert trainer.model.training


def test_held_out_rows_of_chats_are_never_read_in_training(tmp_path, multimodal_path):
    """An unusable row is replaced by the next usable one of the same part."""
    rows = [json.loads(line) for line in multimodal_path.read_text().splitlines()]
    for index in (2, 5):
        rows[index]["images"] = ["missing.png"]
    path = multimodal_path.parent / "broken.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    data = MultimodalDataset(path)
    train, measured = data.select(np.array([0, 1, 2, 4, 7])), data.select(np.array([3, 5, 6]))
    assert [train[i]["row"] for i in range(5)] == [0, 1, 4, 4, 7]
    assert [measured[i]["row"] for i in range(3)] == [3, 6, 6]
    assert (train.report(), measured.report()) == ({"missing image": 1}, {"missing image": 1})
    with pytest.raises(ValueError, match="row 5"):
        measured.read_row(1)
