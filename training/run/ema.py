"""Exponential moving average of the trained weights, kept beside the optimizer and saved instead of the raw weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback

AVERAGE_FILE = "ema_weights.safetensors"
"""Average in float32, in every training checkpoint."""

RAW_FILE = "raw_weights.safetensors"
"""The weights that the optimizer works on, in every training checkpoint; its model file holds the average."""


class _TrainedWeights(nn.Module):
    """The trained weights of a model and nothing else: `AveragedModel` copies all of the module that it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterList(parameter for _, parameter in _trained(model))


class WeightAverage:
    """Average of all trained weights of a model, in float32 on their device (`torch.optim.swa_utils.AveragedModel`).

    After n updates the decay is `min(decay, (1 + n) / (10 + n))`, so that the weights of the start are soon forgotten in
    short runs too (ours, the rule of TensorFlow's `ExponentialMovingAverage`).

    Args:
        model: Model whose weights with `requires_grad` are averaged, starting from their present values.
        decay: Share of the average that each update keeps, in (0, 1).

    Attributes:
        updates: Optimizer steps taken into account.
        weights: Name of each trained weight to its average, float32.

    Raises:
        ValueError: If `decay` is out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"ema_decay: expected a number between 0 and 1 (0 turns it off), got {decay}")
        self.decay = decay
        self.updates = 0
        self._averaged = AveragedModel(_TrainedWeights(model), avg_fn=self._mix).float().requires_grad_(False)
        names = [name for name, _ in _trained(model)]
        self.weights: dict[str, torch.Tensor] = dict(zip(names, self._averaged.parameters(), strict=True))
        self.reset(model)
        self._applied = False

    def update(self, model: nn.Module) -> None:
        """Take one optimizer step into account."""
        self.updates += 1
        self._averaged.update_parameters(_TrainedWeights(model))

    def reset(self, model: nn.Module) -> None:
        """Take the model's present weights as the average."""
        self._averaged.n_averaged.zero_()  # the first weights are copied
        self._averaged.update_parameters(_TrainedWeights(model))

    def _mix(self, average: torch.Tensor, weight: torch.Tensor, _: torch.Tensor | int) -> torch.Tensor:
        # `updates` and not AveragedModel's counter, which lies on the device: reading it would wait once per weight.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        return average.lerp_(weight.float(), 1.0 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model holds the average inside the block and its own weights, bit for bit, afterwards.

        Nested blocks change nothing further. The raw weights wait in main memory meanwhile.
        """
        if self._applied:
            yield
            return
        raw = {name: p.detach().to("cpu", copy=True) for name, p in _trained(model)}
        self._applied = True
        try:
            _assign(model, self.weights)
            yield
        finally:
            _assign(model, raw)
            self._applied = False

    def save(self, folder: str | Path, model: nn.Module) -> None:
        """Write average and raw weights into a training checkpoint."""
        facts = {"decay": repr(self.decay), "updates": str(self.updates)}
        save_file({k: v.contiguous() for k, v in self.weights.items()}, Path(folder) / AVERAGE_FILE, metadata=facts)
        raw = {name: p.detach().contiguous() for name, p in _trained(model)}
        save_file(raw, Path(folder) / RAW_FILE, metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module, decay: float) -> WeightAverage:
        """The average of a training checkpoint, ready to go on.

        Raises:
            ValueError: If the checkpoint has none, or one of other weights.
        """
        average = cls(model, decay)
        with _open(folder, AVERAGE_FILE) as file:
            _require_same(average.weights, file.keys(), Path(folder) / AVERAGE_FILE)
            average.updates = int(file.metadata()["updates"])
            for name, weight in average.weights.items():
                weight.copy_(file.get_tensor(name))
        return average


def load_raw_weights(folder: str | Path, model: nn.Module) -> None:
    """Give a model the weights that the optimizer of a training checkpoint works on.

    Raises:
        ValueError: If the checkpoint has none, or others than the model trains.
    """
    with _open(folder, RAW_FILE) as file:
        _require_same(dict(_trained(model)), file.keys(), Path(folder) / RAW_FILE)
        _assign(model, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  (no mapping)


class WeightAverageCallback(TrainerCallback):
    """Updates a trainer's `average` after every optimizer step that was taken."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.average is None:
            self.trainer.average = WeightAverage(self.trainer.model, args.ema_decay)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not (self.trainer.accelerator.optimizer_step_was_skipped or self.trainer.step_was_skipped):
            self.trainer.average.update(self.trainer.model)


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


@torch.no_grad()
def _assign(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    for name, parameter in _trained(model):
        parameter.copy_(weights[name])


def _open(folder: str | Path, name: str) -> Any:
    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(
            f"ema_decay: {path} is missing, so this checkpoint was trained without it; resume with ema_decay=0, or start "
            "a new run from its weights as model_path"
        )
    return safe_open(path, "pt")


def _require_same(mine: Any, theirs: Any, path: Path) -> None:
    different = set(mine) ^ set(theirs)
    if different:
        raise ValueError(
            f"{path}: holds other weights than this run trains ({len(different)} differ, such as {min(different)}); "
            "resume with the same freeze and adapter options"
        )
