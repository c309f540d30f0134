"""SyVLATrainer: `transformers.Trainer` with the mixture sampler, per-part metrics and a model card."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from processing.mixture import MixtureBatchSampler, MixtureDataset

from .arguments import SyVLATrainingArguments
from .model_card import write_model_card

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
        problems = processing_class.disagreements(self.accelerator.unwrap_model(self.model).config)
        if problems:
            raise ValueError("processor and model do not fit together:\n- " + "\n- ".join(problems))

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

    # ------------------------------------------------------------------ saving

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        # A pickle has no place in a checkpoint that others download; JSON says the same.
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n", encoding="utf-8")
        model = self.accelerator.unwrap_model(self.model)
        write_model_card(folder, model.config, self.processing_class, self._card_fields())

    def _card_fields(self) -> dict[str, Any]:
        losses = [entry for entry in self.state.log_history if "loss" in entry]
        data = self.train_dataset
        return {
            "step": self.state.global_step,
            "final": {k: losses[-1][k] for k in ("loss", "action_loss", "lm_loss") if k in losses[-1]}
            if losses
            else {},
            "robot_samples": sum(map(len, data.robot_datasets)) if data is not None else 0,
            "multimodal_samples": sum(map(len, data.multimodal_datasets)) if data is not None else 0,
            "multimodal_share": self.multimodal_share,
            "arguments": json.loads(self.args.to_json_string()),
            **self.card,
        }
