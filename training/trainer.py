"""SyVLATrainer: `transformers.Trainer` with the mixture sampler, per-part metrics and a model card."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from processing.mixture import MixtureBatchSampler, MixtureDataset

from .adapters import base_model, describe_adapter, is_adapted, save_config
from .arguments import SyVLATrainingArguments
from .ema import RAW_FILE, WeightAverage, WeightAverageCallback, load_raw_weights
from .model_card import RECIPE_FIELDS, write_model_card
from .push_to_hub import push_checkpoint

METRICS = ("action_loss", "lm_loss", "decoupling/masked_fraction")


class SyVLATrainer(Trainer):
    """Trains [`SyVLAModel`] on robot data mixed with multi-modal data.

    Intention Decoupling runs inside the model's forward, so it holds under any wrapper (DDP, ZeRO-2, FSDP2) and under
    gradient accumulation and checkpointing; it is switched by the model's config.

    Args:
        model: A [`SyVLAModel`].
        args: [`SyVLATrainingArguments`].
        processing_class: The [`SyVLAProcessor`]; its `collate` makes the batches and it is saved with every checkpoint.
        train_dataset: A [`MixtureDataset`], or a single dataset of robot items.
        multimodal_share: Share of multi-modal samples in every batch.
        robot_weights, multimodal_weights: See [`MixtureBatchSampler`].
        card: Further fields of the model card, see `write_model_card`.
        kwargs: As [`Trainer`].
    """

    args: SyVLATrainingArguments
    push_in_progress: PushInProgress | None

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
        card: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if train_dataset is not None and not isinstance(train_dataset, MixtureDataset):
            train_dataset = MixtureDataset([train_dataset])
        self.multimodal_share = multimodal_share
        self.robot_weights, self.multimodal_weights = robot_weights, multimodal_weights
        self.card = card or {}
        self.average: WeightAverage | None = None  # of the trained weights, with `ema_decay`
        self._metrics: dict[str, dict[str, list[torch.Tensor]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }
        kwargs.setdefault("data_collator", processing_class.collate)
        super().__init__(
            model=model,
            args=args or SyVLATrainingArguments(),
            processing_class=processing_class,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        problems = processing_class.disagreements(self.policy.config)
        if problems:
            raise ValueError("processor and model do not fit together:\n- " + "\n- ".join(problems))
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

    def get_train_dataloader(self) -> DataLoader:
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
        )
        workers = self.args.dataloader_num_workers
        loader = DataLoader(
            data,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )
        prepared = self.accelerator.prepare(loader)
        shard: Any = getattr(prepared, "batch_sampler", None)
        if shard is not sampler and getattr(shard, "batch_sampler", None) is sampler:
            shard.num_processes, shard.process_index = 1, 0  # the sampler already gives each rank its own batches
            shard.set_epoch = sampler.set_epoch  # so that a run resumed in a later epoch begins there
        return prepared

    # ------------------------------------------------------------------ loss and metrics

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        metrics = self._metrics["train" if model.training else "eval"]
        for name in ("action_loss", "lm_loss"):
            if (value := outputs.get(name)) is not None:
                metrics[name].append(value.detach().float().cpu())
        if (mask := outputs.get("query_mask")) is not None:
            metrics["decoupling/masked_fraction"].append((~mask).float().mean().cpu())
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Loss only, with the same noise and timesteps at every evaluation so that values can be compared."""
        inputs = self._prepare_inputs(inputs)
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices), self.compute_loss_context_manager():
            torch.manual_seed(self.args.seed)
            loss = self.compute_loss(model, inputs)
        return loss.detach().mean(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of the parts since the last log, over all processes."""
        evaluating = any(key.startswith("eval_") for key in logs)
        metrics = self._metrics["eval" if evaluating else "train"]
        if "loss" in logs or evaluating:
            # Sums and counts of all parts in one gather: a rank may lack a part (say, no text in its batches).
            sums = [[sum(metrics[name], torch.zeros(())).item(), len(metrics[name])] for name in METRICS]
            local = torch.tensor(sums, dtype=torch.float64).to(self.args.device, torch.float32)
            total = self.accelerator.gather(local[None]).sum(dim=0)
            for name, (value, count) in zip(METRICS, total.tolist(), strict=True):
                if count:
                    logs[f"eval_{name}" if evaluating else name] = round(value / count, 6)
            metrics.clear()
        super().log(logs, start_time)

    # ------------------------------------------------------------------ average of the weights

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Within it the model holds the average of the weights, where there is one."""
        return nullcontext() if self.average is None else self.average.applied(self.model)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As [`Trainer.evaluate`], of the average where there is one, since that is what is saved."""
        with self.averaged_weights():
            return super().evaluate(*args, **kwargs)

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

    # ------------------------------------------------------------------ saving

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
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

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes our card where [`Trainer.push_to_hub`] would write a generic one."""
        if self.is_world_process_zero():
            self._write_card(Path(self.args.output_dir))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads what `hub_strategy` asks for, in the background: one commit of weights, processor, code and card."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        pending = self.push_in_progress
        busy = pending is not None and not pending.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        target = {"repo_id": self.hub_model_id, "token": self.args.hub_token, "revision": self.args.hub_revision}
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
        self.push_in_progress = PushInProgress([*(pending.jobs if pending is not None and busy else []), *jobs])

    def _write_card(self, folder: Path) -> None:
        write_model_card(folder, self.policy.config, self.processing_class, self._card_fields())

    def _card_fields(self) -> dict[str, Any]:
        losses = [entry for entry in self.state.log_history if "loss" in entry]
        kept = ("loss", "action_loss", "lm_loss")
        return {
            "step": self.state.global_step,
            "world_size": self.args.world_size,
            "final": {key: losses[-1][key] for key in kept if key in losses[-1]} if losses else {},
            "multimodal_share": self.multimodal_share,
            "arguments": {key: value for key, value in self.args.to_dict().items() if key in RECIPE_FIELDS},
            "adapter": describe_adapter(self.accelerator.unwrap_model(self.model)),
            "model_id": self.args.hub_model_id,
            "model_name": (self.args.hub_model_id or Path(self.args.output_dir).resolve().name).split("/")[-1],
            **self.card,
        }
