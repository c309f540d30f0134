"""Plain `transformers.Trainer` on every model: losses, evaluation, resuming, the best checkpoint."""

import pytest
import torch
from contract_subjects import TEXT
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


class Rows(torch.utils.data.Dataset):
    """The rows of a subject's batch as samples; one image per row."""

    def __init__(self, subject, copies=4):
        self.batch, self.copies = subject.batch(), copies
        self.count = len(next(iter(v for k, v in self.batch.items() if k not in ("pixel_values", "image_grid_thw"))))

    def __len__(self):
        return self.count * self.copies

    def __getitem__(self, index):
        return {name: tensor.chunk(self.count)[index % self.count] for name, tensor in self.batch.items()}


def join(samples):
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


def make_trainer(subject, folder, model=None, **arguments):
    fields = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "weight_decay": 0.0,
    }
    return Trainer(
        model=model or subject.model(),
        args=TrainingArguments(str(folder), **{**fields, **arguments}),
        train_dataset=Rows(subject),
        eval_dataset=Rows(subject, copies=1),
        data_collator=join,
    )


def test_it_has_a_loss_and_a_loss_of_evaluation_without_being_told_of_labels(subject, tmp_path):
    trainer = make_trainer(subject, tmp_path, save_strategy="no", remove_unused_columns=False)
    before = trainer.evaluate()["eval_loss"]
    model = subject.model()
    with torch.no_grad():
        assert before == pytest.approx(float(model(**subject.batch()).loss), rel=1e-4)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert trainer.evaluate()["eval_loss"] < before


def test_column_removal_keeps_what_the_forward_reads(subject, tmp_path):
    """The signature names every tensor; a column beside them is removed."""
    trainer = make_trainer(subject, tmp_path, save_strategy="no")
    trainer._set_signature_columns_if_needed()
    assert set(subject.batch()) <= set(trainer._signature_columns)
    collate = trainer._get_collator_with_removed_columns(join, "training")
    samples = [{**trainer.train_dataset[i], "id": torch.tensor([i])} for i in range(2)]
    assert set(collate(samples)) == set(subject.batch())


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(subject, tmp_path):
    whole = make_trainer(subject, tmp_path / "whole", save_strategy="no")
    whole.train()
    first = make_trainer(subject, tmp_path / "parts", save_steps=2)
    first.add_callback(StopAt(2))
    first.train()
    second = make_trainer(subject, tmp_path / "parts", model=subject.model(seed=9), save_strategy="no")
    second.train(resume_from_checkpoint=get_last_checkpoint(str(tmp_path / "parts")))
    wanted = dict(whole.model.named_parameters())
    for name, p in second.model.named_parameters():
        torch.testing.assert_close(p, wanted[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_best_model_is_loaded_at_the_end(subject, tmp_path):
    """A learning rate that ruins the model after the first step: the first checkpoint is the best."""
    trainer = make_trainer(
        subject,
        tmp_path,
        max_steps=2,
        learning_rate=10.0,
        save_steps=1,
        eval_steps=1,
        eval_strategy="steps",
        load_best_model_at_end=True,
        lr_scheduler_type="constant",
    )
    trainer.train()
    evaluations = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = min(evaluations)
    assert best != max(evaluations)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{evaluations.index(best) + 1}")
    loaded = type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint)
    for (name, p), q in zip(trainer.model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.applies(lambda subject: subject is TEXT)
def test_gradient_accumulation_of_the_text_model_changes_no_gradient(subject, tmp_path):
    """Rows have equally many labels, so the mean over a batch is the mean over its halves."""
    runs = []
    for size, steps in ((2, 1), (1, 2)):
        trainer = make_trainer(
            subject,
            tmp_path,
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            save_strategy="no",
            optim="sgd",
            learning_rate=0.1,
            train_sampling_strategy="sequential",
        )
        trainer.train()
        runs.append(dict(trainer.model.named_parameters()))
    for name, p in runs[0].items():
        torch.testing.assert_close(runs[1][name], p, rtol=1e-3, atol=1e-5, msg=name)
