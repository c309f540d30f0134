"""What the machine itself can do: `python -m benchmarks.machine_bound [--device cuda] [--dtype bfloat16]`.

Measures the rate of matrix products and the rate at which memory is read, counts the FLOPs and bytes of a piece of work,
and gives the time that no implementation on this machine can go below: `max(FLOPs / rate, bytes / bandwidth)`. A share
of that bound says how much of the machine a program uses, on any machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.reporting import FlopCount, print_table, write_section
from syvla.modeling_syvla.inference_linear import linear as onednn_linear

Shape = tuple[int, int, int]
"""(rows of the activations, input width, output width) of a linear layer."""

GEMM_SHAPES: tuple[Shape, ...] = ((51, 1408, 4096), (270, 2048, 11008), (816, 2048, 16384), (2048, 2048, 2048))
"""Layers of the flow steps, of the VLM, of PI0's prefill, and a square product."""

GPU_GEMM_SHAPES: tuple[Shape, ...] = (*GEMM_SHAPES, (4096, 4096, 4096), (8192, 8192, 8192))
CACHE_BYTES = 128 * 2**20  # weights of one shape together are larger than any cache, as a model's are


def synchronize(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: str | torch.device = "cpu") -> float:
    """Wall time of one call, until the device is done with it."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def gemm_rates(
    dtype: torch.dtype, device: str | torch.device = "cpu", shapes: Iterable[Shape] | None = None, repeats: int = 3
) -> dict[Shape, float]:
    """Best FLOP/s of a linear layer of each shape, by whichever library is quicker.

    The weights change from call to call and do not stay in the cache.
    """
    if shapes is None:
        shapes = GPU_GEMM_SHAPES if torch.device(device).type == "cuda" else GEMM_SHAPES
    rates = {}
    for rows, inner, outer in shapes:
        x = torch.randn(rows, inner, device=device).to(dtype)
        weight = torch.randn(outer, inner, device=device).to(dtype)
        copies = min(max(2, -(-CACHE_BYTES // weight.nbytes)), 64)
        weights = [weight.clone() for _ in range(copies)]

        best = float("inf")
        for product in _products(dtype, device):

            def run(product: Any = product, x: torch.Tensor = x, weights: list[torch.Tensor] = weights) -> None:
                for weight in weights:
                    product(x, weight)

            with torch.no_grad():
                run()
                best = min(best, *(seconds_of(run, device) for _ in range(repeats)))
        rates[rows, inner, outer] = 2 * rows * inner * outer * copies / best
    return rates


def _products(dtype: torch.dtype, device: str | torch.device) -> list[Callable[..., torch.Tensor]]:
    """PyTorch's own choice, and oneDNN where it would choose MKL."""
    if dtype == torch.float32 and torch.device(device).type == "cpu" and torch.backends.mkldnn.is_available():
        return [F.linear, onednn_linear]
    return [F.linear]


def read_bandwidth(device: str | torch.device = "cpu", nbytes: int = 2**29, repeats: int = 3) -> float:
    """Best bytes per second of reading memory once, in order. Faster of a sum of integers and one of floats."""
    buffer = torch.zeros(nbytes // 8, dtype=torch.int64, device=device)
    best = float("inf")
    for view in (buffer, buffer.view(torch.float32)):
        seconds_of(view.sum, device)
        best = min(best, *(seconds_of(view.sum, device) for _ in range(repeats)))
    return buffer.nbytes / best


@dataclass(frozen=True)
class MachineBound:
    """Measured limits of one device for one dtype.

    Attributes:
        flops_per_second: Best rate of all shapes.
        bytes_per_second: Rate of reading memory.
        rates: The rate of each shape.
    """

    flops_per_second: float
    bytes_per_second: float
    rates: dict[Shape, float] = field(default_factory=dict)

    def seconds(self, work: Work) -> float:
        """Least time that `work` takes here: all its FLOPs at the best rate, all its weights read once per use."""
        return max(work.flops / self.flops_per_second, work.weight_bytes / self.bytes_per_second)

    def as_dict(self) -> dict[str, Any]:
        rates = {"x".join(map(str, shape)): rate / 1e9 for shape, rate in self.rates.items()}
        return {
            "gflops_per_second": self.flops_per_second / 1e9,
            "gbytes_per_second": self.bytes_per_second / 1e9,
            "gflops_per_second_by_shape": rates,
        }


def measure_bound(
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    shapes: Iterable[Shape] | None = None,
    nbytes: int = 2**29,
    repeats: int = 3,
) -> MachineBound:
    """Measure a device; a few seconds."""
    rates = gemm_rates(dtype, device, shapes, repeats)
    return MachineBound(max(rates.values()), read_bandwidth(device, nbytes, repeats), rates)


@dataclass
class Work:
    """FLOPs of matrix products, convolutions and attention, and bytes of the weights that they read."""

    flops: int = 0
    weight_bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.weight_bytes + other.weight_bytes)


class WorkCount(FlopCount):
    """Counts FLOPs, and the bytes of `weights` that counted operations read, every time that they read them."""

    def __init__(self, weights: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        # By storage: an operation sees a weight as a transposed view. The handle exists on the meta device too.
        self._storages = {weight.untyped_storage()._cdata for weight in weights}
        self.weight_bytes = 0

    def counted(self, args: tuple[Any, ...]) -> None:
        for x in args:
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata in self._storages:
                # A weight that is repeated for a batch of products is read once.
                numbers = prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)
                self.weight_bytes += numbers * x.element_size()

    @property
    def work(self) -> Work:
        return Work(self.total, self.weight_bytes)


@contextmanager
def counting(model: torch.nn.Module) -> Iterator[WorkCount]:
    """Count what a model does inside: `with counting(model) as count: ...; count.work`. Eager code only."""
    with WorkCount(model.parameters()) as count:
        yield count


def describe_device(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Processor or GPU, cores, threads, versions."""
    described = {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.device(device).type,
    }
    if torch.device(device).type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    else:
        described["instructions"] = torch.backends.cpu.get_cpu_capability()
    return described


def device_name(device: str | torch.device = "cpu") -> str:
    """Name of a device, under which results are kept: "NVIDIA H100 80GB HBM3", "AMD EPYC, 2 cores"."""
    described = describe_device(device)
    return described.get("gpu") or f"{described['processor']}, {described['cores']} cores"


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def dtype_of(name: str) -> torch.dtype:
    """`float32`, `bfloat16` or `float16`.

    Raises:
        ValueError: For another name.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ValueError(f"dtype: expected one of {sorted(dtypes)}, got {name!r}")
    return dtypes[name]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="dtypes to measure")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)
    bounds = {name: measure_bound(dtype_of(name), options.device, repeats=options.repeats) for name in options.dtype}
    shapes = list(next(iter(bounds.values())).rates)
    rows = [
        [name, *(bound.rates[shape] / 1e9 for shape in shapes), bound.bytes_per_second / 1e9]
        for name, bound in bounds.items()
    ]
    print_table(["GFLOP/s", *("x".join(map(str, shape)) for shape in shapes), "GB/s read"], rows)
    section = {name: bound.as_dict() for name, bound in bounds.items()}
    print(write_section("machine_bound", device_name(options.device), section, describe_device(options.device)))


if __name__ == "__main__":
    main()
