"""Time and work of the parts of one call, read at the edges of methods that the call passes through."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.machine_bound import Work, counting

Spans = Mapping[str, tuple[Any, str]]
"""Name of a span -> the object and its method whose calls make it up."""


class Phases:
    """Adds up, per span, what a clock or counter shows between entry and exit of its method.

    On a GPU the clock is a CUDA event, which the device reaches in its own time: nothing waits for it in between.

    Args:
        spans: See `Spans`. The whole call is the span "total".
        device: Where the model is.
    """

    def __init__(self, spans: Spans, device: str | torch.device = "cpu") -> None:
        self.spans = spans
        self.device = torch.device(device)

    def seconds(self, call: Callable[[], Any]) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Run `call` once: seconds of each span, and of each of its calls."""
        marks = self._marks(call, _cuda_event if self.device.type == "cuda" else time.perf_counter)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            each = {name: [start.elapsed_time(end) / 1e3 for start, end in pairs] for name, pairs in marks.items()}
        else:
            each = {name: [end - start for start, end in pairs] for name, pairs in marks.items()}
        return {name: sum(values) for name, values in each.items()}, each

    def work(self, call: Callable[[], Any], model: torch.nn.Module) -> dict[str, Work]:
        """Run `call` once, eagerly, and count FLOPs and weight bytes of each span."""
        with counting(model) as count:
            marks = self._marks(call, lambda: count.work)
        return {
            name: sum(
                (Work(end.flops - start.flops, end.weight_bytes - start.weight_bytes) for start, end in pairs), Work()
            )
            for name, pairs in marks.items()
        }

    def _marks(self, call: Callable[[], Any], read: Callable[[], Any]) -> dict[str, list[tuple[Any, Any]]]:
        marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in (*self.spans, "total")}
        with _watched(self.spans, marks, read):
            start = read()
            call()
            marks["total"].append((start, read()))
        return marks


@contextmanager
def _watched(spans: Spans, marks: dict[str, list[tuple[Any, Any]]], read: Callable[[], Any]) -> Iterator[None]:
    """Methods of single objects, replaced by ones that note what `read` shows before and after."""
    missing = [f"{name}: {method}" for name, (owner, method) in spans.items() if not callable(getattr(owner, method))]
    if missing:
        raise TypeError(f"spans: expected methods, got {missing}")
    for name, (owner, method) in spans.items():
        setattr(owner, method, _noting(getattr(owner, method), marks[name], read))
    try:
        yield
    finally:
        for owner, method in spans.values():
            delattr(owner, method)


def _noting(method: Callable[..., Any], pairs: list[tuple[Any, Any]], read: Callable[[], Any]) -> Callable[..., Any]:
    def noting(*args: Any, **kwargs: Any) -> Any:
        start = read()
        result = method(*args, **kwargs)
        pairs.append((start, read()))
        return result

    return noting


def _cuda_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
