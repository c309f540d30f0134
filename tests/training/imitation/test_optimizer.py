"""The optimizer of training: fused AdamW unless another is asked for."""

import pytest
import torch

from syvla.training import SyVLATrainer, SyVLATrainingArguments


@pytest.mark.parametrize(("options", "fused"), [({}, True), ({"optim": "adamw_torch"}, None)])
def test_adamw_is_fused_unless_told_otherwise(tiny_model, tiny_processor, make_item, tmp_path, options, fused):
    args = SyVLATrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, **options)
    trainer = SyVLATrainer(tiny_model, args, processing_class=tiny_processor, train_dataset=[make_item(0)])
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["fused"] for group in optimizer.param_groups} == {fused}
    (betas,) = {group["betas"] for group in optimizer.param_groups}
    assert betas == (0.9, 0.995), "Table 7"
