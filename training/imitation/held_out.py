"""The held-out set of a run: its samples, their noise and time, and how a trainer measures the loss on them.

Its loss is a function of the set alone: a sample's noise and time belong to its place in its dataset, and sums are taken
over the whole set. Batch size and the number of processes change it by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from syvla.modeling_syvla.flow_matching import sample_timesteps

from .loss_metrics import named_losses, sample_losses, source_names

NOISE_SEED = 20_260_609
"""Not the run's: losses of runs with other seeds can then be compared."""


class HeldOutSamples(Dataset[dict[str, Any]]):
    """Held-out samples of several datasets, one after the other. An item has its dataset's number as `source`.

    Args:
        robot_datasets: Datasets of robot items.
        multimodal_datasets: Datasets of chats.
        max_samples: Samples of each dataset, spread evenly over it; 0: all.

    Attributes:
        datasets: All of them, robots first.
    """

    def __init__(
        self, robot_datasets: Sequence[Any], multimodal_datasets: Sequence[Any] = (), max_samples: int = 0
    ) -> None:
        self.robot_datasets, self.multimodal_datasets = list(robot_datasets), list(multimodal_datasets)
        self.datasets = [*self.robot_datasets, *self.multimodal_datasets]
        self._positions = [_spread(len(dataset), max_samples) for dataset in self.datasets]
        self._ends = np.cumsum([len(positions) for positions in self._positions])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def place(self, index: int) -> tuple[int, int]:
        """Dataset and index in that dataset of a sample of the set."""
        source = int(np.searchsorted(self._ends, index, side="right"))
        begin = int(self._ends[source - 1]) if source else 0
        return source, int(self._positions[source][index - begin])

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, position = self.place(index)
        return {**self.datasets[source][position], "source": source}


class NumberedSamples(Dataset[dict[str, Any]]):
    """Samples that carry their place, as `held_out_place` (index in its dataset, whether it counts).

    Args:
        data: [`HeldOutSamples`], or any sequence of items, which is one dataset.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, bool]) -> dict[str, Any]:
        index, counts = key
        position = self.data.place(index)[1] if isinstance(self.data, HeldOutSamples) else index
        return {**self.data[index], "held_out_place": (position, counts)}


class HeldOutBatches(Sampler[list[tuple[int, bool]]]):
    """Batches of (index, whether it counts) of one process; every process has as many, as sharded models need.

    Args:
        size: Samples of the set.
        batch_size: Samples per batch of a process.
        rank, world_size: This process among all.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        per_process = -(-size // world_size)
        own = range(rank, rank + per_process * world_size, world_size)
        self._samples = [(index, True) if index < size else (0, False) for index in own]
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._samples) // self._batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        for begin in range(0, len(self._samples), self._batch_size):
            yield self._samples[begin : begin + self._batch_size]


class HeldOutCollator:
    """Adds `held_out_places` int64 (B, 2) to the batches of a collator: index in its dataset, and 1 where it counts."""

    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[dict[str, Any]]) -> Any:
        batch = self.collate([{k: v for k, v in item.items() if k != "held_out_place"} for item in items])
        batch["held_out_places"] = torch.tensor([item["held_out_place"] for item in items], dtype=torch.int64)
        return batch


def held_out_noise_and_time(places: torch.Tensor, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (B, T, D_action_max) and time (B,) of samples, by their index in their dataset.

    Args:
        places: int64 (B, 2), see `HeldOutCollator`.
        config: The model's [`SyVLAConfig`].
    """
    noise = torch.zeros(len(places), config.chunk_size, config.max_action_dim)
    timestep = torch.zeros(len(places))
    distribution = (config.time_beta_alpha, config.time_beta_beta, config.time_max)
    for row, position in enumerate(places[:, 0].tolist()):
        key = np.random.SeedSequence((NOISE_SEED, position)).generate_state(1, dtype=np.uint64)
        generator = torch.Generator().manual_seed(int(key[0]))
        noise[row] = torch.randn(noise.shape[1:], generator=generator)
        timestep[row] = sample_timesteps(1, *distribution, torch.device("cpu"), generator)[0]
    return noise, timestep


def _spread(size: int, most: int) -> np.ndarray:
    """Indices of at most `most` samples of `size`, evenly spread; 0: all."""
    count = min(size, most) if most else size
    return np.arange(count) * size // max(count, 1)


# ---------------------------------------------------------------------- losses

_ROBOTS, _CHATS = 0, 1  # rows of the table before those of robots and datasets


class HeldOutLosses:
    """Sums over one evaluation. Unlike in training a loss that is not finite counts: the result is then NaN.

    Args:
        embodiments: Name and id of every robot.
        sources: Name of every held-out dataset, in the order of their numbers.
        chats: Whether each of them is multi-modal.
        action_weight, lm_weight: Weights of the losses in the total.
    """

    def __init__(
        self,
        embodiments: dict[str, int],
        sources: Sequence[str],
        chats: Sequence[bool],
        action_weight: float,
        lm_weight: float,
    ) -> None:
        self.embodiments, self.sources, self.chats = dict(embodiments), list(sources), list(chats)
        self.weights = (action_weight, lm_weight)
        self.sums = torch.zeros(2 + len(self.embodiments) + len(self.sources), 5, dtype=torch.float64)

    def update(self, outputs: Any, is_robot: torch.Tensor, counts: torch.Tensor, ids: Any, sources: Any) -> None:
        """Add one batch.

        Args:
            outputs: [`SyVLAOutput`].
            is_robot: bool (B,), samples with an action loss.
            counts: bool (B,), samples that no other process or batch adds.
            ids: Of the robots, int64 (B,) or None; sources: numbers of the datasets, int64 (B,) or None.
        """
        values = sample_losses(outputs, is_robot).double().cpu()
        values = torch.cat([values, torch.ones(len(values), 1, dtype=values.dtype)], dim=1)  # and the samples
        values = torch.where(counts.cpu()[:, None], values, 0.0)
        robot = is_robot.cpu()
        self.sums[_ROBOTS] += values[robot].sum(0)
        self.sums[_CHATS] += values[~robot].sum(0)
        for row, number in enumerate(self.embodiments.values(), start=2):
            if ids is not None:
                self.sums[row] += values[ids.cpu() == number].sum(0)
        if sources is not None and self.sources:
            self.sums.index_add_(0, sources.cpu() + 2 + len(self.embodiments), values)

    def report(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """The losses, by name.

        `loss`, `action_loss` and `lm_loss` (of thoughts) are those of the robots' samples; `vlm_loss` is the mean over the
        answer tokens of multi-modal rows, which tells what the VLM forgets. Without robots `loss` is that of the rows.

        Args:
            gather: Concatenates every process's tensor along the first dimension.
        """
        sums = gather(self.sums[None]).sum(0).tolist()
        logs: dict[str, float] = {}
        groups = [("", sums[_ROBOTS])]
        groups += zip((f"_by_embodiment/{name}" for name in self.embodiments), sums[2:], strict=False)
        groups += zip((f"_by_source/{name}" for name in self.sources), sums[2 + len(self.embodiments) :], strict=True)
        for name, (*parts, _) in groups:
            logs.update(named_losses(name, parts, self.weights))
        rows = named_losses("", sums[_CHATS][:4], self.weights)
        if "lm_loss" in rows:
            logs["vlm_loss"] = rows["lm_loss"]
            logs.setdefault("loss", rows["loss"])
        return {**{name: round(value, 6) for name, value in logs.items()}, "samples": sums[0][4] + sums[1][4]}

    def names(self) -> list[str]:
        """Every name that a report may hold; what data lacks is absent from it."""
        groups = ["", *(f"_by_embodiment/{name}" for name in self.embodiments)]
        groups += [f"_by_source/{name}" for name in self.sources]
        found = [f"{part}{group}" for group in groups for part in ("loss", "action_loss", "lm_loss")]
        return [*found, "vlm_loss"] if any(self.chats) else found


# ---------------------------------------------------------------------- evaluation


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
