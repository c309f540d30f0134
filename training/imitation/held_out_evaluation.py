"""How a trainer measures the loss on held-out data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.data import DataLoader

from .held_out import HeldOutBatches, HeldOutCollator, HeldOutSamples, NumberedSamples, held_out_noise_and_time
from .held_out_losses import HeldOutLosses
from .loss_metrics import source_names


class HeldOutEvaluationMixin:
    """For [`SyVLATrainer`]: `evaluate` measures totals over the whole set, with the noise and time of each sample fixed.

    `eval_dataset` is a [`HeldOutSamples`], any sequence of items, or a mapping of names to these.
    """

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """This process's batches of a held-out set; training draws the same random numbers with and without it."""
        trainer: Any = self
        data = trainer.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(data, str):
            data = trainer.eval_dataset[data]
        if data is None or not len(data):
            raise ValueError(f"{type(self).__name__}: evaluating requires an eval_dataset with at least one sample")
        args = trainer.args
        workers = args.dataloader_num_workers
        return DataLoader(
            NumberedSamples(data),
            batch_sampler=HeldOutBatches(len(data), args.eval_batch_size, args.process_index, args.world_size),
            collate_fn=HeldOutCollator(trainer.data_collator),
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            prefetch_factor=args.dataloader_prefetch_factor if workers else None,
            generator=torch.Generator(),
            **trainer._worker_options(),
        )

    get_test_dataloader = get_eval_dataloader

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As [`Trainer.evaluate`], with the average of the weights, since the average is what is saved."""
        average: AbstractContextManager[None] = self.averaged_weights()  # type: ignore[attr-defined]
        with average:
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        return metrics

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As [`Trainer.evaluation_loop`], with the losses of [`HeldOutLosses`] instead of a mean over batches."""
        trainer: Any = self
        self._losses = self._new_losses(dataloader.dataset.data)
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
        report = self._losses.report(trainer._gather)
        output.metrics.pop(f"{metric_key_prefix}_loss", None)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in report.items()})
        return output

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Adds one batch to the sums. Its own loss, which is returned, is not used."""
        trainer: Any = self
        config = trainer.policy.config
        inputs = dict(trainer._prepare_inputs(inputs))
        places, sources = inputs.pop("held_out_places"), inputs.pop("source_ids", None)
        inputs.pop("rows", None)
        if inputs.get("actions") is not None and config.action_head != "l1_regression":
            noise, timestep = held_out_noise_and_time(places.cpu(), config)
            inputs["noise"], inputs["timestep"] = noise.to(places.device), timestep.to(places.device)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            outputs = model(**inputs)
        robots = (inputs["input_ids"] == config.query_token_id).any(-1)
        self._losses.update(outputs, robots, places[:, 1] == 1, inputs.get("embodiment_ids"), sources)
        return outputs["loss"].detach().float().mean(), None, None

    def _new_losses(self, data: Any) -> HeldOutLosses:
        config = self.policy.config  # type: ignore[attr-defined]
        ids = {name: entry["id"] for name, entry in config.embodiments.items()}
        known = isinstance(data, HeldOutSamples)
        sources = source_names(data.datasets) if known else []
        chats = [number >= len(data.robot_datasets) for number in range(len(sources))] if known else []
        return HeldOutLosses(ids, sources, chats, config.action_loss_weight, config.lm_loss_weight)

    def require_known_metric(self) -> None:
        """Refuses a `metric_for_best_model` that no evaluation gives, before training starts.

        Raises:
            ValueError: Naming what there is.
        """
        trainer: Any = self
        wanted = trainer.args.metric_for_best_model
        if wanted is None or trainer.eval_dataset is None:
            return
        known = list(self._metric_names())
        if wanted.removeprefix("eval_") not in known:
            raise ValueError(
                f"metric_for_best_model: {wanted!r} is not measured on this held-out data; choose from {known}"
            )

    def _metric_names(self) -> Iterator[str]:
        data: Any = self.eval_dataset  # type: ignore[attr-defined]
        for prefix, member in data.items() if isinstance(data, Mapping) else [("", data)]:
            yield from (f"{prefix}_{name}" if prefix else name for name in self._new_losses(member).names())

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        try:
            found: bool = super()._determine_best_metric(metrics, trial)  # type: ignore[misc]
        except KeyError as error:  # a loss that no held-out sample has, such as lm_loss without thoughts
            raise ValueError(f"metric_for_best_model: {error.args[0]}") from error
        return found
