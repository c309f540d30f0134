"""A robot that a step has no sample of keeps its coders as they are, whatever the optimizer's moments say."""

import itertools

import pytest
import torch

from syvla.modeling_syvla import unused_weights
from syvla.processing.mixture import MixtureDataset
from syvla.training import SyVLATrainer, SyVLATrainingArguments


class Alternating(torch.utils.data.Dataset):
    """Robot samples of one robot."""

    def __init__(self, make_item, robot, count=4):
        self.items = [make_item(i, robot) for i in range(count)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.fixture(params=[False, True], ids=["alone", "with others"])
def trainer(request, make_model, tiny_processor, make_item, tmp_path, monkeypatch):
    """One sample a step of either robot. With others, every weight has a gradient, as DDP needs it."""
    monkeypatch.setattr(unused_weights, "in_step_with_others", lambda: request.param)
    args = SyVLATrainingArguments(
        str(tmp_path), max_steps=8, per_device_train_batch_size=1, weight_decay=0.1, learning_rate=1e-3, warmup_steps=0,
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    robots = [Alternating(make_item, robot) for robot in ("tabletop", "arm")]
    return SyVLATrainer(make_model(), args, processing_class=tiny_processor, train_dataset=MixtureDataset(robots))


def test_coders_of_an_absent_robot_do_not_move(trainer):
    """In every step exactly the robot of its one sample moves, from the second on with moments of the other's steps."""
    model, ids = trainer.model, {name: entry["id"] for name, entry in trainer.model.config.embodiments.items()}
    seen, moved = [], []
    step = trainer.training_step

    def weights():
        return {name: [p.detach().clone() for p in model.expert.embodiments[name].parameters()] for name in ids}

    def watched(model, inputs, *args):
        seen.append(int(inputs["embodiment_ids"][0]))
        before.append(weights())
        return step(model, inputs, *args)

    before = []
    trainer.training_step = watched
    trainer.train()
    states = [*before, weights()]
    for old, new in itertools.pairwise(states):
        moved.append({ids[name] for name in ids if not all(map(torch.equal, old[name], new[name]))})
    assert set(seen) == set(ids.values())
    assert moved == [{number} for number in seen]


def passes(model, batch):
    """How often a training forward runs the suffix of the expert."""
    count = 0
    whole = model.expert.velocity_at

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        return whole(*args, **kwargs)

    model.expert.velocity_at = counted
    model.train()(**batch).loss.backward()
    del model.expert.velocity_at
    return count


@pytest.mark.parametrize(("others", "expected"), [(False, 0), (True, 1)])
def test_chats_alone_run_the_expert_once_at_most(others, expected, make_model, tiny_processor, make_chat, monkeypatch):
    monkeypatch.setattr(unused_weights, "in_step_with_others", lambda: others)
    model = make_model()
    batch = tiny_processor.collate([make_chat(0), make_chat(1)])
    assert passes(model, batch) == expected
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert any(name.startswith("expert.layers") for name in without) != others
