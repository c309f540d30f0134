"""Losses per robot and dataset equal those of their samples alone, wherever the samples fell."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from syvla.training.imitation.loss_metrics import LossMetrics, source_names


@pytest.fixture
def mixed(make_model, tiny_processor, make_item, make_chat):
    """Model and items of two robots and three datasets: (item, dataset)."""
    items = [(make_item(1, thought="reach it"), 0), (make_item(2, "arm"), 1), (make_item(3, "arm"), 1)]
    items += [(make_chat(4), 2), (make_chat(5, answer="a much longer answer than that"), 2)]
    return make_model(), items


def losses(model, processor, items):
    batch = processor.collate([item for item, _ in items])
    batch["noise"] = torch.ones(len(items), 8, 14)
    batch["timestep"] = torch.full((len(items),), 0.3)
    with torch.no_grad():
        return batch, model(**batch)


def measure(model, processor, parts):
    """One process for each list of items; returns what all of them report."""
    metrics = []
    for items in parts:
        own = LossMetrics({"tabletop": 0, "arm": 1}, ["lift", "pour", "chats"], 2.0, 0.5)
        if items:
            batch, outputs = losses(model, processor, items)
            robots = (batch["input_ids"] == model.config.query_token_id).any(-1)
            own.update(outputs, robots, batch.get("embodiment_ids"), torch.tensor([s for _, s in items]))
        metrics.append(own)
    every = torch.stack([own.sums for own in metrics])
    return metrics[0].report(lambda _: every)


@pytest.mark.parametrize("split", [[5], [2, 3], [3, 2], [4, 1], [0, 5]])
def test_every_loss_is_that_of_its_samples_alone(split, mixed, tiny_processor):
    model, items = mixed
    edges = [sum(split[:i]) for i in range(len(split) + 1)]
    logs = measure(model, tiny_processor, [items[a:b] for a, b in itertools.pairwise(edges)])
    alone = {
        "action_loss": losses(model, tiny_processor, items)[1].action_loss,
        "lm_loss": losses(model, tiny_processor, items)[1].lm_loss,
        "action_loss_by_embodiment/arm": losses(model, tiny_processor, items[1:3])[1].action_loss,
        "action_loss_by_source/lift": losses(model, tiny_processor, items[:1])[1].action_loss,
        "lm_loss_by_source/lift": losses(model, tiny_processor, items[:1])[1].lm_loss,
        "lm_loss_by_source/chats": losses(model, tiny_processor, items[3:])[1].lm_loss,
    }
    for name, value in alone.items():
        assert logs[name] == pytest.approx(value.item(), abs=2e-5), name
    total = 2.0 * logs["action_loss_by_embodiment/tabletop"] + 0.5 * logs["lm_loss_by_embodiment/tabletop"]
    assert logs["loss_by_embodiment/tabletop"] == pytest.approx(total, abs=2e-6)
    assert "lm_loss_by_source/pour" not in logs, "no sample of it has a thought"


def test_a_report_starts_anew_and_sums_survive_a_checkpoint(mixed, tiny_processor):
    model, items = mixed
    batch, outputs = losses(model, tiny_processor, items)
    robots = batch["embodiment_ids"] >= 0
    first = LossMetrics({"tabletop": 0, "arm": 1}, ["a", "b", "c"], 1.0, 1.0)
    first.update(outputs, robots, batch["embodiment_ids"], torch.tensor([0, 1, 1, 2, 2]))
    second = LossMetrics({"tabletop": 0, "arm": 1}, ["a", "b", "c"], 1.0, 1.0)
    second.load_state_dict(first.state_dict())
    assert second.report(lambda x: x) == first.report(lambda x: x) != {}
    assert first.report(lambda x: x) == {}


def test_masked_states_are_counted_over_all_samples():
    metrics = LossMetrics({}, [], 1.0, 1.0)
    for kept in (7, 8):
        mask = torch.arange(8)[None] < kept
        metrics.update({"query_mask": mask}, torch.tensor([True]), None, None)
    assert metrics.report(lambda x: x)["decoupling/masked_fraction"] == 1 / 16


def test_data_sets_of_the_same_name_are_told_apart():
    datasets = [
        SimpleNamespace(root="a/lift"),
        SimpleNamespace(name="b/lift"),
        SimpleNamespace(root="c/lift/"),
        object(),
    ]
    assert source_names(datasets) == ["lift", "lift-2", "lift-3", "dataset_3"]
