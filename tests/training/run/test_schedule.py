"""A schedule that rises is refused, and one that never leaves warm-up is said."""

import logging

import pytest
import torch

from syvla.training import SyVLATrainer, SyVLATrainingArguments
from syvla.training.run.arguments import SyVLAPretrainingArguments


def test_a_peak_below_the_default_end_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match="3e-06 is above the peak learning_rate 1e-06, so the rate would rise"):
        SyVLATrainingArguments("out", learning_rate=1e-6, use_cpu=True)
    SyVLATrainingArguments("out", learning_rate=1e-6, final_learning_rate=1e-7, use_cpu=True)


def test_an_end_that_the_schedule_does_not_read_is_refused():
    with pytest.raises(ValueError, match=r"1e-07 has no effect with lr_scheduler_type=linear"):
        SyVLATrainingArguments("out", final_learning_rate=1e-7, lr_scheduler_type="linear", use_cpu=True)
    for kind in (SyVLATrainingArguments, SyVLAPretrainingArguments):
        kind("out", lr_scheduler_type="linear", use_cpu=True)


@pytest.mark.parametrize(("warmup", "said"), [(1000, True), (3, True), (2, False), (0.1, False)])
def test_a_run_within_its_warm_up_says_what_rate_it_reaches(
    warmup, said, tiny_model, tiny_processor, make_item, tmp_path, caplog
):
    args = SyVLATrainingArguments(str(tmp_path), use_cpu=True, max_steps=3, warmup_steps=warmup, learning_rate=1e-3)
    trainer = SyVLATrainer(tiny_model, args, processing_class=tiny_processor, train_dataset=[make_item(0)])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    with caplog.at_level(logging.WARNING):
        scheduler = trainer.create_scheduler(3, optimizer)
    assert ("ends within its warm-up" in caplog.text) == said
    if warmup == 1000:
        assert "at a learning rate of 3e-06 instead of 0.001" in caplog.text
        for _ in range(3):
            optimizer.step()
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(3e-6), "the number that was said"
