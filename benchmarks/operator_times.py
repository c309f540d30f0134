"""Which operators a call spends its time in, by torch's own profiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def operator_seconds(call: Callable[[], Any], device: str | torch.device = "cpu") -> dict[str, float]:
    """Seconds per operator in one call, without those of the operators that it calls; longest first."""
    gpu = torch.device(device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as profiler:
        call()
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    seconds = {event.key: getattr(event, key) / 1e6 for event in profiler.key_averages()}
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def shares_of_difference(whole: Mapping[str, float], part: Mapping[str, float], count: int = 8) -> dict[str, float]:
    """Operators that take most of what `whole` does beyond `part`, as shares of that."""
    rest = {name: max(0.0, seconds - part.get(name, 0.0)) for name, seconds in whole.items()}
    total = sum(rest.values())
    largest = sorted(rest.items(), key=lambda item: -item[1])[:count]
    return {name: seconds / total for name, seconds in largest}
