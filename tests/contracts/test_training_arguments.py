"""Every field of the installed `TrainingArguments` acts in our trainers, or is refused by name."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from syvla.training import SyVLAPPOConfig, SyVLAPPOTrainer, SyVLATrainer, SyVLATrainingArguments
from syvla.training.run.argument_fields import (
    REFUSED_BY_PPO_TRAINER,
    REFUSED_BY_TRAINER,
    STATED,
    require_read_fields,
)

BASE = {field.name: field for field in dataclasses.fields(TrainingArguments)}

# What acts, by the part of `Trainer` that reads it. A new version's new field is in no list, and fails the first test.
ACTS = {
    "length": "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps auto_find_batch_size",
    "optimizer": "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio optim optim_args "
    "weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules max_grad_norm neftune_noise_alpha",
    "precision": "bf16 fp16 bf16_full_eval fp16_full_eval tf32 use_cpu torch_compile torch_compile_backend "
    "torch_compile_mode activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing "
    "gradient_checkpointing_kwargs torch_empty_cache_steps full_determinism",
    "logging": "logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter logging_dir "
    "include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project "
    "trackio_space_id trackio_bucket_id trackio_static_space_id skip_memory_metrics debug",
    "evaluation": "eval_strategy eval_steps eval_delay per_device_eval_batch_size eval_on_start load_best_model_at_end "
    "metric_for_best_model greater_is_better",
    "saving": "output_dir save_only_model save_strategy save_steps save_on_each_node save_total_limit "
    "enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push "
    "hub_revision resume_from_checkpoint restore_callback_states_from_checkpoint",
    "data": "seed data_seed ignore_data_skip dataloader_num_workers dataloader_pin_memory "
    "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order",
    "processes": "accelerator_config ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers "
    "ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed",
}
ACTING = {name for names in ACTS.values() for name in names.split()}


@pytest.mark.parametrize(
    "refused", [REFUSED_BY_TRAINER, REFUSED_BY_PPO_TRAINER], ids=["SyVLATrainer", "SyVLAPPOTrainer"]
)
def test_every_field_is_in_one_of_the_lists(refused):
    known = ACTING | set(refused) | STATED
    assert not set(BASE) - known, "new fields of transformers: find out whether they act"
    if refused is REFUSED_BY_TRAINER:
        assert not ACTING & set(refused)


def other_value(name, accepted):
    """A value that asks for something."""
    chosen = {
        "train_sampling_strategy": "group_by_length",
        "length_column_name": "tokens",
        "label_names": ["labels"],
        "include_for_metrics": ["inputs"],
        "dataloader_multiprocessing_context": "spawn",
        "eval_strategy": "steps",
        "include_num_input_tokens_seen": "all",
        "metric_for_best_model": "loss",
        "optim_target_modules": ["q_proj"],
        "parallelism_config": object(),
        "liger_kernel_config": {"rope": True},
    }
    if name in chosen:
        return chosen[name]
    return not accepted if isinstance(accepted, bool) else (accepted or 0) + 1


@pytest.mark.parametrize(
    ("config", "refused"),
    [(SyVLATrainingArguments, REFUSED_BY_TRAINER), (SyVLAPPOConfig, REFUSED_BY_PPO_TRAINER)],
    ids=["SyVLATrainer", "SyVLAPPOTrainer"],
)
def test_a_field_that_nobody_reads_is_refused_by_name(config, refused, tmp_path):
    args = config(str(tmp_path), use_cpu=True, report_to="none")
    require_read_fields(args, refused, "trainer")  # defaults ask for nothing
    for name, field in refused.items():
        if name not in BASE:
            continue
        before = getattr(args, name)
        setattr(args, name, other_value(name, field.accepted[0]))
        with pytest.raises(ValueError, match=rf"- {name}=.*: expected "):
            require_read_fields(args, refused, "trainer")
        setattr(args, name, before)


@pytest.mark.parametrize("name", ["split_batches", "dispatch_batches"])
def test_processes_draw_their_own_batches(name, tmp_path):
    args = SyVLATrainingArguments(str(tmp_path), use_cpu=True, accelerator_config={name: True})
    with pytest.raises(ValueError, match=f"accelerator_config.{name}: expected false"):
        require_read_fields(args, REFUSED_BY_TRAINER, "trainer")


@pytest.fixture
def make_trainer(tiny_model, tiny_processor, make_item, tmp_path):
    def make(options=None, **arguments):
        args = SyVLATrainingArguments(
            str(tmp_path), **{"use_cpu": True, "max_steps": 1, "disable_tqdm": True, "save_strategy": "no", **arguments}
        )
        items = [make_item(seed) for seed in range(4)]
        return SyVLATrainer(
            tiny_model,
            args,
            processing_class=tiny_processor,
            train_dataset=items,
            eval_dataset=items,
            **(options or {}),
        )

    return make


def test_the_trainer_refuses_before_it_does_anything(make_trainer):
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0.1: expected 0"):
        make_trainer(label_smoothing_factor=0.1)


@pytest.mark.parametrize("name", ["compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"])
def test_options_of_the_constructor_that_nobody_reads_are_refused(make_trainer, name):
    with pytest.raises(ValueError, match=f"SyVLATrainer does not read {name}: "):
        make_trainer({name: lambda *args, **kwargs: {}})


class Recorder:
    """Remembers which fields of the arguments are read."""

    def __init__(self):
        self.read = set()

    def watch(self, args):
        recorder = self

        class Watched(type(args)):
            def __getattribute__(self, name):
                recorder.read.add(name)
                return super().__getattribute__(name)

        args.__class__ = Watched


# Read at a time that one step on one CPU process has no use for, at the construction of the arguments, or by trackers.
NOT_IN_ONE_STEP = """
    accelerator_config activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon bf16 ddp_backend
    ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout deepspeed
    dataloader_in_order dataloader_multiprocessing_context dataloader_prefetch_factor debug disable_tqdm
    enable_jit_checkpoint eval_delay eval_steps fp16 fsdp fsdp_config full_determinism gradient_checkpointing
    gradient_checkpointing_kwargs greater_is_better hub_always_push hub_model_id hub_private_repo hub_revision
    hub_strategy hub_token ignore_data_skip local_rank log_level log_level_replica log_on_each_node logging_dir
    logging_first_step lr_scheduler_kwargs metric_for_best_model neftune_noise_alpha num_train_epochs
    optim_target_modules per_device_eval_batch_size per_device_train_batch_size project report_to
    restore_callback_states_from_checkpoint resume_from_checkpoint run_name save_on_each_node save_only_model save_steps
    save_total_limit skip_memory_metrics tf32 torch_compile torch_compile_backend torch_compile_mode
    torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id use_cpu warmup_ratio
    """


def test_every_acting_field_is_read_in_one_step_and_one_evaluation_or_named_here(make_trainer):
    trainer = make_trainer()
    recorder = Recorder()
    recorder.watch(trainer.args)
    trainer.train()
    trainer.evaluate()
    unread = {name for name in ACTING & set(BASE) if name not in recorder.read}
    assert sorted(unread - set(NOT_IN_ONE_STEP.split())) == []


@pytest.mark.skipif("dataloader_in_order" not in BASE, reason="this transformers has no such fields")
def test_options_of_worker_processes_reach_the_loader(make_trainer):
    trainer = make_trainer(
        dataloader_num_workers=1, dataloader_multiprocessing_context="spawn", dataloader_in_order=False
    )
    loader = trainer.get_train_dataloader()
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert loader.in_order is False


def test_neftune_noise_changes_what_the_step_learns(make_trainer, tiny_model):
    """A field that acts through a hook on the input embeddings, which the policy calls as a module."""
    trainer = make_trainer(neftune_noise_alpha=5.0)
    seen = []
    handle = tiny_model.get_input_embeddings().register_forward_hook(
        lambda *hook: seen.append(hook[2].detach().clone())
    )
    plain = tiny_model.get_input_embeddings().weight.detach().clone()
    trainer.train()
    handle.remove()
    rows = seen[0].flatten(0, 1)
    distance = torch.cdist(rows, plain).min(dim=1).values
    assert distance.max() > 0, "noise was added to the embeddings"


def test_weights_that_a_checkpoint_lacks_or_has_in_excess_end_a_resumed_run(make_trainer):
    """`Trainer` loads without strictness and only warns."""
    trainer = make_trainer()
    state = trainer.model.state_dict()
    del state["vlm.lm_head.weight"]  # tied, and in no file
    trainer._issue_warnings_after_load(trainer.model.load_state_dict(state, strict=False))
    state["expert.extra"] = state.pop("action_queries.weight")
    with pytest.raises(
        ValueError, match=r"missing from the checkpoint, such as action_queries.weight; 1 weights unknown"
    ):
        trainer._issue_warnings_after_load(trainer.model.load_state_dict(state, strict=False))


@pytest.mark.parametrize("trainer", [SyVLATrainer, SyVLAPPOTrainer])
def test_an_option_of_the_card_that_ours_would_not_show_is_refused(trainer):
    """`push_to_hub` hands its options on to `create_model_card`, before it uploads anything."""
    with pytest.raises(ValueError, match=r"license: this trainer writes the card from the run's own facts"):
        trainer.create_model_card(SimpleNamespace(model=None), model_name="run", license="mit")
