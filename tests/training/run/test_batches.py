"""A step's loss, gradient and noise depend on its samples, not on how processes and micro-batches share them."""

import pytest
import torch

from syvla.training.run.batches import TrainingCollator, count_samples, draw_noise_and_time, set_loss_divisors


def complete(config, shares, step=3):
    """Completes the batches of a step as their processes would: `shares[process][micro-batch]` are batches."""
    counts = torch.cat([count_samples(own, config) for own in shares])
    for rank, own in enumerate(shares):
        set_loss_divisors(own, counts)
        draw_noise_and_time(own, counts, rank, config, (0, step))


@pytest.fixture
def items(make_item, make_chat):
    """Five robot samples and two chats whose answers differ in length."""
    robots = [make_item(i, "arm" if i == 2 else "tabletop", thought="reach it" if i == 1 else None) for i in range(5)]
    return [*robots, make_chat(1, answer="three"), make_chat(2, answer="one red cube and two green bars")]


SHARES = {
    "one process": [[[0, 1, 2, 3, 4, 5, 6]]],
    "two micro-batches": [[[0, 1, 5], [2, 3, 4, 6]]],
    "two processes": [[[0, 1, 5]], [[2, 3, 4, 6]]],
    "one of them without actions": [[[5, 6]], [[0, 1, 2, 3, 4]]],
    "two by two": [[[0, 5], [2, 3]], [[1], [4, 6]]],
}


@pytest.mark.parametrize("share", list(SHARES)[1:])
def test_loss_and_gradient_are_those_of_one_process(share, make_model, tiny_processor, items):
    """Decoupling is on; the mean over processes and micro-batches is what DDP and accumulation give."""
    model = make_model().train()

    def total(name):
        shares = [[tiny_processor.collate([items[i] for i in part]) for part in own] for own in SHARES[name]]
        loss = torch.zeros(())
        complete(model.config, shares)
        for own in shares:
            for batch in own:
                loss = loss + model(**batch).loss / (len(shares) * len(own))
        model.zero_grad()
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    (expected, gradients), (loss, found) = total("one process"), total(share)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=1e-3, msg=name)


def test_noise_belongs_to_the_samples_place_in_the_step(make_model, tiny_processor, items):
    config = make_model().config
    drawn = {}
    for name in ("one process", "two processes", "two by two"):
        shares = [[tiny_processor.collate([items[i] for i in part]) for part in own] for own in SHARES[name]]
        complete(config, shares)
        drawn[name] = torch.cat([b["noise"][b["embodiment_ids"] >= 0] for m in zip(*shares, strict=True) for b in m])
    assert all(torch.equal(drawn["one process"], noise) for noise in drawn.values())
    assert len(drawn["one process"].flatten(1).unique(dim=0)) == 5, "no two samples share their noise"
    batch = tiny_processor.collate(items)
    complete(config, [[batch]], step=4)
    assert not torch.equal(batch["noise"][0], drawn["one process"][0])


def test_a_step_without_robots_or_answers_divides_by_one(make_model, tiny_processor, make_item, make_chat):
    config = make_model().config
    chat, robot = tiny_processor.collate([make_chat(1)]), tiny_processor.collate([make_item(1)])
    for batch in (chat, robot):
        complete(config, [[batch]])
    assert (chat["robot_samples"], chat["answer_tokens"]) == (1, (chat["labels"] != -100).sum())
    assert (robot["robot_samples"], robot["answer_tokens"]) == (1, 1)


@pytest.mark.parametrize("bucket", [1, 32])
def test_buckets_round_the_length_up_and_leave_the_loss(bucket, make_model, tiny_processor, items):
    batch = TrainingCollator(tiny_processor.collate, bucket)([{**item, "source": i} for i, item in enumerate(items)])
    assert batch["input_ids"].shape[1] % bucket == 0
    assert batch.pop("source_ids").tolist() == list(range(7))
    assert len(batch.pop("rows")) == 7
    exact = tiny_processor.collate(items)
    assert 0 <= batch["input_ids"].shape[1] - exact["input_ids"].shape[1] < bucket
    model = make_model()
    for b in (batch, exact):
        complete(model.config, [[b]])
    torch.testing.assert_close(model(**batch).loss, model(**exact).loss, atol=1e-5, rtol=1e-5)
