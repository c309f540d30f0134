"""What a run needs is said by name before anything heavy is loaded."""

import importlib.util

import pytest

from syvla.training import SyVLATrainer, SyVLATrainingArguments
from syvla.training.run.requirements import TRACKERS


@pytest.mark.parametrize("command", ["finetune", "value_warmup", "ppo"])
def test_a_tracker_that_is_not_installed_is_one_error(command, tmp_path, capsys):
    from importlib import import_module

    absent = [name for name, module in TRACKERS.items() if importlib.util.find_spec(module) is None]
    if not absent:
        pytest.skip("every tracker is installed")
    main = import_module(f"syvla.training.{command}").main
    assert main(["--output_dir", str(tmp_path), "--report_to", absent[0]]) == 1
    assert f"report_to: {absent[0]} is not installed; install it with: pip install" in capsys.readouterr().err


def test_a_trainer_without_processor_says_what_it_needs(tiny_model, make_item, tmp_path):
    args = SyVLATrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="processing_class: expected the checkpoint's SyVLAProcessor, got NoneType"):
        SyVLATrainer(tiny_model, args, train_dataset=[make_item(0)])


def test_data_parallel_is_refused(tiny_model, tiny_processor, make_item, tmp_path):
    """Two GPUs that one process sees are this number and nothing else until a batch is split."""
    args = SyVLATrainingArguments(str(tmp_path), use_cpu=True)
    args._setup_devices  # noqa: B018  (sets the number)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="sees 2 GPUs and would train with DataParallel"):
        SyVLATrainer(tiny_model, args, processing_class=tiny_processor, train_dataset=[make_item(0)])
