"""SyVLATrainer: `transformers.Trainer` with the mixture sampler, per-part metrics and a model card."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from huggingface_hub import HfApi
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from syvla.processing.file_order import FileOrder
from syvla.processing.mixture import MixtureBatchSampler, MixtureDataset
from syvla.processing.multimodal.sources import CAUSES
from syvla.training.hub.model_card import RECIPE_FIELDS, refuse_card_options, write_model_card
from syvla.training.hub.push_to_hub import push_checkpoint
from syvla.training.run.adapters import base_model, describe_adapter, is_adapted, save_config
from syvla.training.run.argument_fields import (
    REFUSED_BY_TRAINER,
    require_read_fields,
    require_read_options,
)
from syvla.training.run.arguments import SyVLATrainingArguments
from syvla.training.run.batches import (
    TrainingCollator,
    absent_parts,
    choose_padding_free,
    count_samples,
    draw_noise_and_time,
    set_loss_divisors,
)
from syvla.training.run.checkpoints import AtomicCheckpointMixin
from syvla.training.run.compiled_layers import compile_instead_of_whole
from syvla.training.run.ema import RAW_FILE, WeightAverage, WeightAverageCallback, load_raw_weights
from syvla.training.run.finite_steps import FiniteStepsMixin
from syvla.training.run.requirements import require_one_device, require_processor
from syvla.training.run.run_settings import settings_of
from syvla.training.run.schedule import warn_of_endless_warmup

from .held_out import HeldOutEvaluationMixin, HeldOutSamples
from .look_ahead import look_ahead
from .loss_metrics import LossMetrics, source_names


class SyVLATrainer(HeldOutEvaluationMixin, FiniteStepsMixin, AtomicCheckpointMixin, Trainer):
    """Trains [`SyVLAModel`] on robot data mixed with multi-modal data.

    A step's loss and gradient depend on its samples alone, not on the numbers of processes and micro-batches that share
    them (up to rounding), see `batches`; checkpoints are whole or absent, see `checkpoints`.

    Intention Decoupling runs inside the model's forward, so it holds under any wrapper (DDP, ZeRO-2, FSDP2) and under
    gradient accumulation and checkpointing; it is switched by the model's config.

    Args:
        model: A [`SyVLAModel`].
        args: [`SyVLATrainingArguments`].
        processing_class: The [`SyVLAProcessor`]; its `collate` makes the batches and it is saved with every checkpoint.
        train_dataset: A [`MixtureDataset`], or a single dataset of robot items.
        eval_dataset: Held-out samples, see `HeldOutEvaluationMixin`.
        multimodal_share: Share of multi-modal samples in every batch.
        robot_weights, multimodal_weights: See [`MixtureBatchSampler`].
        robot_orders: Number of a robot dataset -> order of its samples, where they are not shuffled as a whole.
        card: Further fields of the model card, see `write_model_card`.
        kwargs: As [`Trainer`].
    """

    stage = "imitation"
    args: SyVLATrainingArguments
    model: torch.nn.Module
    processing_class: Any
    train_dataset: Any
    push_in_progress: PushInProgress | None  # type: ignore[assignment]  # the base class names None alone

    def __init__(
        self,
        model: Any = None,
        args: SyVLATrainingArguments | None = None,
        *,
        processing_class: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        multimodal_share: float = 0.0,
        robot_weights: list[float] | None = None,
        multimodal_weights: list[float] | None = None,
        robot_orders: Mapping[int, FileOrder] | None = None,
        card: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if train_dataset is not None and not isinstance(train_dataset, MixtureDataset):
            train_dataset = MixtureDataset([train_dataset])
        self.multimodal_share = multimodal_share
        self.robot_weights, self.multimodal_weights = robot_weights, multimodal_weights
        self.robot_orders = dict(robot_orders or {})
        self.card = card or {}
        self.average: WeightAverage | None = None  # of the trained weights, with `ema_decay`
        args = args or SyVLATrainingArguments()
        require_processor(processing_class)
        require_one_device(args)
        require_read_fields(args, REFUSED_BY_TRAINER, type(self).__name__)
        require_read_options(kwargs, type(self).__name__)
        kwargs.setdefault("data_collator", TrainingCollator(processing_class.collate, args.length_bucket))
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        problems = processing_class.disagreements(self.policy.config)
        if problems:
            raise ValueError("processor and model do not fit together:\n- " + "\n- ".join(problems))
        choose_padding_free(
            self.policy, args.padding_free, length_bucket=args.length_bucket, compiled=args.torch_compile
        )
        compile_instead_of_whole(self.accelerator, self.policy, args)
        self._config = self.policy.config
        self._sources = source_names(getattr(self.train_dataset, "datasets", ()))
        self._metrics = self._new_metrics()
        self.require_known_metric()
        self._started, self._waited, self._samples = time.perf_counter(), 0.0, 0  # since the last log
        self._resumed_step = 0
        if self.args.ema_decay:
            self._require_whole_weights("ema_decay", "the average")
            self.add_callback(WeightAverageCallback(self))
        if self.args.vlm_eval_steps:
            from .forgetting_callback import ForgettingCallback

            self._require_whole_weights("vlm_eval_steps", "generating answers")
            self.add_callback(ForgettingCallback(self))

    @property
    def policy(self) -> Any:
        """The [`SyVLAModel`] without wrappers of distributed training and adapters."""
        return base_model(self.accelerator.unwrap_model(self.model))

    def _require_whole_weights(self, option: str, purpose: str) -> None:
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if self.is_fsdp_enabled or (self.is_deepspeed_enabled and plugin is not None and plugin.zero_stage == 3):
            raise ValueError(
                f"{option}: {purpose} needs whole weights on every process, which FSDP and ZeRO-3 do not keep; use DDP or "
                f"ZeRO-2, or set {option}=0"
            )

    # ------------------------------------------------------------------ data

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.train_dataset is None:
            raise ValueError("SyVLATrainer: training requires a train_dataset")
        data: MixtureDataset = self.train_dataset
        sampler = MixtureBatchSampler(
            [len(d) for d in data.robot_datasets],
            [len(d) for d in data.multimodal_datasets],
            batch_size=self._train_batch_size,
            multimodal_share=self.multimodal_share,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            robot_weights=self.robot_weights,
            multimodal_weights=self.multimodal_weights,
            with_pass=True,
            orders=self.robot_orders,
        )
        workers = self.args.dataloader_num_workers
        loader = DataLoader(
            data,
            batch_sampler=look_ahead(sampler, data.robot_datasets, self.args, self._resumed_step),
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            **self._worker_options(),
        )
        # `accelerator.prepare` would deal the batches out to the processes, but the sampler already gives each its own.
        # For a loader of a single process it moves batches to the device and can skip them, and does nothing else.
        prepared: DataLoader[Any] = prepare_data_loader(
            loader,
            self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=self.accelerator.device_placement,
            rng_types=list(self.accelerator.rng_types or ()),
            non_blocking=self.accelerator.non_blocking,
        )
        return prepared

    def _worker_options(self) -> dict[str, Any]:
        """Options of the loader's processes that newer versions of transformers have."""
        names = {"multiprocessing_context": "dataloader_multiprocessing_context", "in_order": "dataloader_in_order"}
        given = {option: getattr(self.args, name, None) for option, name in names.items()}
        return {
            option: value for option, value in given.items() if value is not None and self.args.dataloader_num_workers
        }

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], None]:
        """One optimizer step's micro-batches of this process, with the noise, times and divisors of their losses.

        Returns:
            (micro-batches, None); the second is where [`Trainer`] would expect the step's number of tokens. The batches
            hold what their losses are divided by, so that the trainer's own mean over micro-batches is right.
        """
        started = time.perf_counter()
        batches = list(islice(epoch_iterator, num_batches))
        self._waited += time.perf_counter() - started
        self._samples += sum(len(batch["input_ids"]) for batch in batches)
        if batches:
            own = count_samples(batches, self._config).to(self.args.device)
            self._counts = counts = self.accelerator.gather(own).cpu()
            set_loss_divisors(batches, counts)
            seed = (self.args.data_seed if self.args.data_seed is not None else self.args.seed, self.state.global_step)
            draw_noise_and_time(batches, counts, self.args.process_index, self._config, seed)
        return batches, None

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As [`Trainer._get_grad_norm`]; what no sample of the step uses gets no gradient, not a zero one.

        By a zero one the optimizer would move it along its old moments, and shrink it by weight decay.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        for module in absent_parts(self.policy, self._counts):
            for parameter in module.parameters():
                parameter.grad = None
        return norm

    def _gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Every process's tensor, one after the other along the first dimension."""
        gathered: torch.Tensor = self.accelerator.gather(tensor.to(self.args.device))
        return gathered

    # ------------------------------------------------------------------ loss and metrics

    def _new_metrics(self) -> LossMetrics:
        config = self.policy.config
        ids = {name: entry["id"] for name, entry in config.embodiments.items()}
        sources = source_names(getattr(self.train_dataset, "datasets", ()))
        return LossMetrics(ids, sources, config.action_loss_weight, config.lm_loss_weight)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of a micro-batch, whose parts are also added to the metrics of the next log line."""
        inputs = dict(inputs)
        source_ids, rows = inputs.pop("source_ids", None), inputs.pop("rows", None)
        names = [] if rows is None else self._row_names(source_ids, rows)
        robots = (inputs["input_ids"] == self._config.query_token_id).any(-1)
        outputs = model(**inputs)
        not_finite = self._metrics.update(outputs, robots, inputs.get("embodiment_ids"), source_ids)
        if names:
            self.note_rows(names, not_finite)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _row_names(self, source_ids: torch.Tensor, rows: Sequence[str]) -> list[str]:
        return [f"{self._sources[int(source)]}: {row}" for source, row in zip(source_ids, rows, strict=True)]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the losses of robots and datasets since the last log, speed and skipped rows, over all processes."""
        if "loss" in logs:
            logs.update(self._metrics.report(self._gather))
            logs.update(self._speed())
            logs.update(self._skipped_rows())
        super().log(logs, start_time)

    def _speed(self) -> dict[str, float]:
        """Samples per second of all processes, and the share of their time in which they waited for data."""
        now = time.perf_counter()
        own = torch.tensor([[float(self._samples), self._waited, now - self._started]])
        samples, waited, seconds = self._gather(own).sum(0).tolist()
        self._started, self._waited, self._samples = now, 0.0, 0
        per_process = max(seconds / self.args.world_size, 1e-9)
        return {
            "speed/samples_per_second": round(samples / per_process, 3),
            "speed/data_wait_share": round(waited / max(seconds, 1e-9), 4),
        }

    def _skipped_rows(self) -> dict[str, float]:
        """Rows of multi-modal data that could not be used since the run began, by dataset and cause."""
        if not (counted := self._counted()):
            return {}
        own = torch.stack([dataset.skipped.counts for _, dataset in counted])
        total = self._gather(own[None]).sum(0)
        return {
            f"skipped_rows/{name}/{cause}": count
            for (name, _), row in zip(counted, total.tolist(), strict=True)
            for cause, count in zip(CAUSES, row, strict=True)
            if count
        }

    def _counted(self) -> list[tuple[str, Any]]:
        """Name and dataset of the multi-modal ones, which count the rows that they skip."""
        datasets = getattr(self.train_dataset, "datasets", ())
        return [(name, d) for name, d in zip(source_names(datasets), datasets, strict=True) if hasattr(d, "skipped")]

    # ------------------------------------------------------------------ average of the weights

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Puts the average of the weights into the model until the `with` block ends; does nothing without `ema_decay`."""
        return nullcontext() if self.average is None else self.average.applied(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self.averaged_weights():
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average is not None and self.args.should_save:
            self.average.save(output_dir, self.model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.args.ema_decay:
            load_raw_weights(resume_from_checkpoint, self.model)
        elif (Path(resume_from_checkpoint) / RAW_FILE).is_file():
            raise ValueError(
                f"ema_decay: {resume_from_checkpoint} was trained with an average of the weights; resume with the same "
                "ema_decay, or start a new run from its weights as model_path"
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.args.ema_decay:
            self.average = WeightAverage.load(checkpoint, self.model, self.args.ema_decay)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.average is not None:  # the best checkpoint's model file is its average
            self.average.reset(self.model)

    # ------------------------------------------------------------------ saving and resuming

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """As [`Trainer.create_scheduler`]; says so where the run ends within its warm-up."""
        warn_of_endless_warmup(self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def run_settings(self) -> dict[str, dict[str, Any]]:
        datasets = getattr(self.train_dataset, "datasets", ())
        lengths = [[name, len(dataset)] for name, dataset in zip(source_names(datasets), datasets, strict=True)]
        data = {
            "datasets": lengths,
            "robot_weights": self.robot_weights,
            "multimodal_weights": self.multimodal_weights,
            "multimodal_share": self.multimodal_share,
            "shuffle_files": {str(number): order.window for number, order in self.robot_orders.items()} or None,
            "embodiments": self.policy.config.embodiments,
            "freeze": self.card.get("freeze", "none"),
            "adapter": describe_adapter(self.accelerator.unwrap_model(self.model)),
        }
        if held_out := self._held_out_parts():
            data["held_out"] = held_out
        return settings_of(self.args, data)

    def _held_out_parts(self) -> list[list[Any]]:
        """Short name of each dataset that holds something out, and its held-out episodes, or number of rows."""
        if not isinstance(self.eval_dataset, HeldOutSamples):
            return []
        held_out = self.eval_dataset.datasets
        parts = [getattr(dataset, "episodes", None) or len(dataset) for dataset in held_out]
        return [list(pair) for pair in zip(source_names(held_out), parts, strict=True)]

    def prepare_to_continue(self, checkpoint: Path | None) -> None:
        """Starts the clock, and the multi-modal datasets at the step of the checkpoint."""
        self._started, self._waited, self._samples = time.perf_counter(), 0.0, 0
        self._resumed_step = 0
        if checkpoint is not None:
            step = self._resumed_step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
            for _, dataset in self._counted():
                dataset.begin_at(step)

    # Only these two of [`Trainer`]'s methods for checkpoints run on every process, and each process has sums of its own.

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        path = Path(output_dir) / f"unlogged_losses_{self.args.process_index}.json"
        path.write_text(json.dumps(self._unlogged_sums()) + "\n", encoding="utf-8")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        path = Path(checkpoint or "") / f"unlogged_losses_{self.args.process_index}.json"
        if checkpoint is not None and path.is_file():
            self._add_unlogged_sums(json.loads(path.read_text(encoding="utf-8")))

    def _unlogged_sums(self) -> dict[str, Any]:
        """What this process has summed up since the last log line; a resumed run then logs what an unbroken one does."""
        return {
            "loss": self._tr_loss.item(),
            "last_logged_step": self._globalstep_last_logged,
            "metrics": self._metrics.state_dict(),
            "nonfinite_steps": self.nonfinite_steps,
            "skipped_rows": {name: dataset.skipped.counts.tolist() for name, dataset in self._counted()},
        }

    def _add_unlogged_sums(self, sums: dict[str, Any]) -> None:
        self._tr_loss += sums["loss"]
        self._globalstep_last_logged = sums["last_logged_step"]
        self.nonfinite_steps = sums.get("nonfinite_steps", 0)
        self._metrics.load_state_dict(sums["metrics"])
        for name, dataset in self._counted():
            dataset.skipped.restore(sums.get("skipped_rows", {}).get(name, []))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        # A pickle has no place in a checkpoint that others download; JSON says the same.
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n", encoding="utf-8")
        if is_adapted(self.accelerator.unwrap_model(self.model)):
            save_config(self.policy, folder)
        self._write_card(folder)

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Writes our card where [`Trainer.push_to_hub`] would write a generic one."""
        refuse_card_options(self.model, *args, **options)
        if self.is_world_process_zero():
            self._write_card(Path(self.args.output_dir))

    def _push_whole_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads what `hub_strategy` asks for, in the background: one commit of weights, processor, code and card."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        pending = self.push_in_progress
        busy = pending is not None and not pending.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        target: dict[str, Any] = {
            "repo_id": self.hub_model_id,
            "token": self.args.hub_token,
            "revision": self.args.hub_revision,
        }
        jobs = [push_checkpoint(checkpoint_folder, commit_message=message, blocking=False, **target)]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            place = "last-checkpoint" if last else Path(checkpoint_folder).name
            jobs.append(
                HfApi().upload_folder(
                    folder_path=checkpoint_folder,
                    path_in_repo=place,
                    commit_message=f"{message}, checkpoint",
                    run_as_future=True,
                    **target,
                )
            )
        waiting: Any = pending.jobs if pending is not None and busy else []  # a list, annotated as a single job
        all_jobs: Any = [*waiting, *jobs]
        self.push_in_progress = PushInProgress(all_jobs)

    def _write_card(self, folder: Path) -> None:
        write_model_card(folder, self.policy.config, self.processing_class, self._card_fields())

    def _card_fields(self) -> dict[str, Any]:
        losses = [entry for entry in self.state.log_history if "loss" in entry]
        measured = [entry for entry in self.state.log_history if "eval_loss" in entry]
        kept = ("loss", "action_loss", "lm_loss", "vlm_loss")
        return {
            "step": self.state.global_step,
            "nonfinite_steps": self.nonfinite_steps,
            "world_size": self.args.world_size,
            "final": {key: losses[-1][key] for key in kept if key in losses[-1]} if losses else {},
            "held_out": {key: measured[-1][f"eval_{key}"] for key in kept if f"eval_{key}" in measured[-1]}
            if measured
            else {},
            "held_out_data": self._held_out_parts(),
            "multimodal_share": self.multimodal_share,
            "arguments": {key: value for key, value in self.args.to_dict().items() if key in RECIPE_FIELDS},
            "adapter": describe_adapter(self.accelerator.unwrap_model(self.model)),
            "model_id": self.args.hub_model_id,
            "model_name": (self.args.hub_model_id or Path(self.args.output_dir).resolve().name).split("/")[-1],
            **self.card,
        }
