"""Memory of a training step on one GPU, counted without one: `python -m benchmarks.memory`.

The real model, adapter, loss, Intention Decoupling, backward and AdamW run on tensors that have shapes and no numbers
(`benchmarks.shape_only`), so that the paper's size needs neither a GPU nor the memory. A sample is a robot's, with three views
of 224 px and 40 tokens of text; of a batch of two or more 30% are chats with an image of 448 px, as in fine-tuning.

What counts is what torch's allocator would be asked for. A GPU holds more: the context of CUDA and its libraries (0.5 to 1 GB)
and what the allocator rounds and fragments. `--check` counts a small model and measures the same step on this machine.
`--device` measures a real model of the given size there, beside the counted one: the peak of CUDA's allocator, or on a CPU
that of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from benchmarks.process_memory import measure_memory
from benchmarks.reporting import print_table, write_result
from benchmarks.scaled_model import make_batch, scaled_config
from benchmarks.shape_only import FourBitLinear, LiveBytes, norms_of_cuda, shapes_of
from syvla.modeling_syvla import SyVLAModel
from syvla.training.run.adapters import add_adapter
from syvla.training.run.freezing import freeze

CHAT_SHARE = 0.3
BATCH_SIZES = (1, 4, 8)
GPUS = (24, 40, 80, 141)
"""Gigabytes of an RTX 4090, an A100, an A100 or H100, and an H200."""

USABLE = 0.92
"""Share of a GPU that a step may fill; the rest is the context's and what fragments. Ours, not measured."""

WAYS = {
    "full": "all weights, float32 with bfloat16 autocast",
    "frozen VLM": "`--freeze vlm`: adapter, queries and expert train; frozen weights are float32 too",
    "LoRA": "`--adapter lora`: the frozen checkpoint in bfloat16, rank 16 on VLM and expert",
    "QLoRA": "LoRA, and the language model's layers in 4 bits",
}


@dataclass(frozen=True)
class Counted:
    """Bytes of a step; `activations` are those alive when the forward pass ends, `peak` the most of the whole step."""

    inputs: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def batch_of(config: Any, size: int) -> dict[str, torch.Tensor]:
    """See the top of this file."""
    chats = round(CHAT_SHARE * size)
    return make_batch(config, size - chats, chats)


def build(config: Any, way: str) -> nn.Module:
    """The model of one of `WAYS` with its frozen weights marked, in training mode."""
    if way not in WAYS:
        raise ValueError(f"way: expected one of {', '.join(WAYS)}, got {way!r}")
    model: Any = SyVLAModel(config)
    model.tie_weights()  # which a model does not do by itself whose weights are not initialized
    if way == "frozen VLM":
        freeze(model, "vlm")
    elif way != "full":
        model = add_adapter(model, "lora", "both")
    trained: nn.Module = model.train()
    return trained


def weight_dtype(way: str) -> Callable[[nn.Parameter], torch.dtype]:
    """As `syvla-finetune` loads: float32 without an adapter; with one, what is frozen keeps the checkpoint's bfloat16."""
    adapted = way in ("LoRA", "QLoRA")
    return lambda weight: torch.bfloat16 if adapted and not weight.requires_grad else torch.float32


def enable_checkpointing(model: Any, way: str) -> None:
    """As transformers' Trainer does, with PEFT's inputs marked as trained, without which nothing would be."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if way in ("LoRA", "QLoRA"):
        model.enable_input_require_grads()


def quantize(model: nn.Module) -> None:
    """Puts the frozen linear layers of the language model into 4 bits."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "language_model.layers" in name and not module.weight.requires_grad:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, FourBitLinear(module))


def count(config: Any, way: str, size: int, checkpointing: bool, context: Callable[[], Any] | None = None) -> Counted:
    """Bytes of the second of two steps: the optimizer's state is there, gradients are not.

    Args:
        config: A `SyVLAConfig`.
        way: One of `WAYS`.
        size: Samples, chats included.
        checkpointing: Whether activations are computed again in the backward pass.
        context: Autocast on the CPU, as it is there; None: bfloat16 as on CUDA.
    """
    norms = norms_of_cuda() if context is None else nullcontext()
    context = context or autocast_of("cpu")
    model, fake = shapes_of(lambda: build(config, way), weight_dtype(way))
    if way == "QLoRA":
        quantize(model)
    if checkpointing:
        enable_checkpointing(model, way)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    with LiveBytes() as live, norms:
        live.add(list(model.parameters()), list(model.buffers()))
        weights = live.now
        batch = fake(batch_of(config, size))
        live.add(list(batch.values()))
        inputs = live.now - weights
        step(model, optimizer, batch, context)
        gradients = sum(w.grad.untyped_storage().nbytes() for w in trained if w.grad is not None)
        state = sum(x.untyped_storage().nbytes() for s in optimizer.state.values() for x in s.values() if x.dim())
        optimizer.zero_grad()
        before = live.peak = live.now
        after_forward: list[int] = []
        step(model, optimizer, batch, context, lambda: after_forward.append(live.now))
        return Counted(inputs, weights, gradients, state, after_forward[0] - before, live.peak)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
    context: Callable[[], Any],
    after_forward: Callable[[], Any] = lambda: None,
) -> None:
    """Zero gradients, forward under autocast, backward, optimizer."""
    optimizer.zero_grad()
    with context():
        loss = model(**batch).loss
    after_forward()
    loss.backward()
    optimizer.step()


# ------------------------------------------------------------------------------------------------ against measured memory

SMALL = (4, 6)
"""Divisors of the paper's widths and depths."""

CHECKS = {"float32": (False, False), "autocast": (True, False), "autocast, checkpointing": (True, True)}
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
"""glibc gives back what is freed at once, so that the process holds what its tensors hold."""


def autocast_of(device: str, on: bool = True) -> Callable[[], Any]:
    kind = torch.device(device).type
    return (lambda: torch.autocast(kind, torch.bfloat16)) if on else nullcontext


def growth(counted: Counted) -> int:
    """Bytes by which a step exceeds what is there before it: batch, weights and the optimizer's state."""
    return counted.peak - counted.inputs - counted.weights - counted.optimizer


def measured_growth(
    config: Any, way: str, size: int, checkpointing: bool, device: str, context: Callable[[], Any]
) -> int:
    """As `growth`, of a real model after one step."""
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = build(config, way)
    dtype = weight_dtype(way)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype(weight))
    if checkpointing:
        enable_checkpointing(model, way)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], fused=True)
    batch = {name: x.to(device) for name, x in batch_of(config, size).items()}
    step(model, optimizer, batch, context)
    optimizer.zero_grad()
    memory = measure_memory(lambda: step(model, optimizer, batch, context), device)
    if memory is None:
        raise SystemExit(f"{device}: the system does not say how much memory a process holds; this needs Linux")
    return memory.peak - memory.before


def in_own_process(*arguments: str) -> int:
    """What a process of this module with these arguments prints as `bytes`."""
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", *arguments]
    done = subprocess.run(command, env={**os.environ, **MALLOC}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {done.returncode}: {done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def check(size: int = 4) -> dict[str, dict[str, float]]:
    """Counted and measured growth of each of `CHECKS` in bytes, and their ratio."""
    result = {}
    for name, (autocast, checkpointing) in CHECKS.items():
        context = autocast_of("cpu", autocast)
        counted = growth(count(scaled_config(*SMALL), "full", size, checkpointing, context))
        flags = ["--autocast"] * autocast + ["--checkpointing"] * checkpointing
        width, depth = map(str, SMALL)
        measured = in_own_process("--width", width, "--depth", depth, "--batch-sizes", str(size), *flags)
        result[name] = {"counted": counted, "measured": measured, "ratio": counted / measured}
    return result


# ------------------------------------------------------------------------------------------------------------------ command


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY", help=", ".join(WAYS)
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=list(BATCH_SIZES))
    parser.add_argument("--width", type=int, default=1, help="divisor of the paper's widths")
    parser.add_argument("--depth", type=int, default=1, help="divisor of the paper's depths")
    parser.add_argument("--check", action="store_true", help="count a small model and measure the same step here")
    parser.add_argument("--device", help="measure a real model there too, cuda or cpu")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/ as it is")
    # The process that --check and --device start for one measurement.
    for name in ("--measure", "--autocast", "--checkpointing"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    config = scaled_config(options.width, options.depth)
    if options.measure:
        device = options.device or "cpu"
        context = autocast_of(device, options.autocast)
        way, size = options.ways[0], options.batch_sizes[0]
        print(json.dumps({"bytes": measured_growth(config, way, size, options.checkpointing, device, context)}))
        return
    checks = check() if options.check else None
    for name, figures in (checks or {}).items():
        print(f"{name}: counted / measured = {figures['ratio']:.3f}")
    table = []
    for way, on, size in product(options.ways, (False, True), options.batch_sizes):
        line = {"way": way, "batch_size": size, "gradient_checkpointing": on, **asdict(count(config, way, size, on))}
        if options.device is not None:
            own = ["--width", options.width, "--depth", options.depth, "--ways", way, "--batch-sizes", size]
            flags = ["--autocast", "--device", options.device] + ["--checkpointing"] * on
            line["measured_growth"] = in_own_process(*map(str, own), *flags)
        table.append(line)
        print(f"{way}, batch {size}{', checkpointing' if on else ''}: {line['peak'] / 1e9:.1f} GB", flush=True)
    header = ["way", "checkpointing", "batch", "weights", "gradients", "optimizer", "activations", "peak GB", "fits"]
    rows = [_row(line) for line in table]
    if options.device is not None:
        header += ["counted / measured"]
        rows = [[*row, _ratio(line)] for row, line in zip(rows, table, strict=True)]
    print_table(header, rows)
    if not options.no_write:
        name = "memory" if options.device is None else f"memory_{options.device}"
        print(write_result(name, {"command": "python -m benchmarks.memory --check", "check": checks, "table": table}))


def _ratio(line: dict[str, Any]) -> float:
    """Of what a step needs beyond what is there before it, counted over measured."""
    there = line["inputs"] + line["weights"] + line["optimizer"]
    return float((line["peak"] - there) / line["measured_growth"])


def _row(line: dict[str, Any]) -> list[Any]:
    parts = [line[key] / 1e9 for key in ("weights", "gradients", "optimizer", "activations", "peak")]
    fitting = [str(gpu) for gpu in GPUS if parts[-1] <= USABLE * gpu]
    checkpointing = "yes" if line["gradient_checkpointing"] else "no"
    return [line["way"], checkpointing, line["batch_size"], *parts, f"{fitting[0]} GB" if fitting else "none"]


if __name__ == "__main__":
    main()
