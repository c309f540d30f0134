"""What the benchmarks share: a table on the terminal and JSON in benchmarks/results/."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

RESULTS_VARIABLE = "SYVLA_BENCHMARK_RESULTS"
"""Environment variable that names another folder for results, such as that of a rehearsal."""

RESULTS = Path(os.environ.get(RESULTS_VARIABLE) or Path(__file__).parent / "results")

_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CPU_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class FlopCount(TorchDispatchMode):
    """Counts the FLOPs of matrix products, convolutions and attention with torch's own formulas.

    `FlopCounterMode` cannot be used: its module hooks refuse `torch.autograd.grad`, which Intention Decoupling calls, and
    torch's table lacks attention on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket is _CPU_ATTENTION:
            self.total += _attention_flops(*args[:3])
        elif func._overloadpacket is _CPU_ATTENTION_BACKWARD:  # scores again, then four products: 5 instead of 2
            self.total += _attention_flops(*args[1:4]) * 5 // 2
        elif (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
            self.counted(args)
        return out

    def counted(self, args: tuple[Any, ...]) -> None:
        """Called with the arguments of every product that may read weights."""


def _attention_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """Two products per query head, (B, heads, tokens, head_dim) each; keys may have fewer heads."""
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def interleaved_rounds(
    variants: dict[str, Callable[[], Any]], repeats: int, synchronize: Callable[[], Any] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each variant in each round.

    The variants take turns, so that a busy spell of the machine hits all of them; one unmeasured round comes first.

    Args:
        synchronize: Waits until the device is done.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(repeats + 1):
        for name, run in variants.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if round_number:
                times[name].append(time.perf_counter() - start)
    return times


def interleaved_seconds(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds per call of each variant, see `interleaved_rounds`."""
    return {name: statistics.median(values) for name, values in interleaved_rounds(variants, repeats).items()}


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write `benchmarks/results/<name>.json` with the machine beside the figures."""
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**result, "machine": machine}, indent=2) + "\n", encoding="utf-8")
    return path


def write_section(name: str, device: str, result: dict[str, Any], machine: dict[str, Any]) -> Path:
    """Put the figures of one device into `benchmarks/results/<name>.json`; those of other devices stay.

    Single numbers of the section also stand at the top level, where the last run's are found without knowing its device.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    sections = json.loads(path.read_text(encoding="utf-8")).get("devices", {}) if path.is_file() else {}
    sections[device] = {**result, "machine": machine}
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
    content = {**numbers, "device": device, "devices": sections}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def print_table(header: list[str], rows: list[list[Any]]) -> None:
    cells = [header, *[[f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
