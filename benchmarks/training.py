"""Speed and memory of a training step, with and without padding and checkpointing: `python -m benchmarks.training`.

One model at the paper's proportions (all widths and depths divided alike) takes whole steps, forward, backward and fused
AdamW, on a batch of robot and multi-modal samples whose lengths vary as in training. The four variants take turns within one
run. Shares are of the machine's own rate of matrix products: of all FLOPs that a step does, and of the useful ones alone,
without those of padding and of recomputation.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.machine_bound import (
    GEMM_SHAPES,
    Shape,
    describe_device,
    device_name,
    dtype_of,
    gemm_rates,
    synchronize,
)
from benchmarks.process_memory import Memory, keep_freed_memory, measure_memory
from benchmarks.reporting import FlopCount, interleaved_rounds, print_table, write_section
from benchmarks.scaled_model import chat_tokens, make_batch, robot_tokens, scaled_config
from syvla.modeling_syvla import SyVLAModel
from syvla.modeling_syvla.padding_free import set_padding_free

CHAT_SHARE = 0.3
CHAT_SIDES = (224, 336, 448, 560)
VARIANTS = {
    "padded": (False, False),
    "padding-free": (True, False),
    "padded, checkpointing": (False, True),
    "padding-free, checkpointing": (True, True),
}


def draw_batch(config: Any, size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Samples of unequal length (ours): 30% chats, as in fine-tuning.

    Robots have 1 to 3 views (three in four have all) and instructions of 8 to 30 tokens, every tenth with a thought of 20
    to 60 more; chats an image of 224 to 560 px and 20 to 200 tokens of text.
    """
    draw = random.Random(seed)
    chats = max(1, round(CHAT_SHARE * size))
    patch = config.vlm_config.vision_config.patch_size
    rows, grids = [], []
    for i in range(size - chats):
        views = draw.choices((3, 2, 1), (6, 1, 1))[0]
        text = draw.randint(8, 30) + (draw.randint(20, 60) if i % 10 == 0 else 0)
        rows.append(robot_tokens(config, text, views))
        grids += [(224 // patch, 224 // patch)] * views
    for _ in range(chats):
        side = draw.choice(CHAT_SIDES)
        rows.append(chat_tokens(config, side, draw.randint(20, 200)))
        grids.append((side // patch, side // patch))
    return make_batch(config, size - chats, chats, rows=rows, grids=grids)


class TrainingStep:
    """Zero gradients, forward, backward, optimizer."""

    def __init__(self, model: SyVLAModel, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> None:
        self.model, self.optimizer, self.batch = model, optimizer, batch

    def run(self, padding_free: bool, checkpointing: bool) -> None:
        set_padding_free(self.model, padding_free)
        if checkpointing:
            self.model.gradient_checkpointing_enable()
        else:
            self.model.gradient_checkpointing_disable()
        self.optimizer.zero_grad(set_to_none=True)
        self.model(**self.batch).loss.backward()
        self.optimizer.step()


def layer_shapes(config: Any, tokens: int) -> list[Shape]:
    """The VLM's own MLP layers."""
    text = config.get_text_config()
    return [(tokens, text.hidden_size, text.intermediate_size), (tokens, text.intermediate_size, text.hidden_size)]


def _gibibytes(memory: Memory | None) -> dict[str, float | None]:
    """Peak, and what it is above weights and optimizer state, which are there before the step."""
    if memory is None:
        return {"peak_gibibytes": None, "peak_above_weights_gibibytes": None}
    above = memory.peak - memory.before
    return {"peak_gibibytes": memory.peak / 2**30, "peak_above_weights_gibibytes": above / 2**30}


def main(argv: Sequence[str] | None = None) -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--width", type=int, default=1 if on_gpu else 4, help="divisor of the paper's widths")
    parser.add_argument("--depth", type=int, default=1 if on_gpu else 6, help="divisor of the paper's depths")
    parser.add_argument("--batch-size", type=int, default=8 if on_gpu else 6)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)
    dtype = dtype_of(options.dtype)
    torch.manual_seed(0)
    config = scaled_config(options.width, options.depth)
    model = SyVLAModel(config).to(options.device, dtype).train()
    batch = {
        name: x.to(options.device, dtype if "pixel" in name else None)
        for name, x in draw_batch(config, options.batch_size).items()
    }
    step = TrainingStep(model, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True), batch)
    steps = {name: lambda kind=kind: step.run(*kind) for name, kind in VARIANTS.items()}
    flops, memory = {}, {}
    for name, run in steps.items():
        with FlopCount() as counter:
            run()
        flops[name] = counter.total
        step.optimizer.zero_grad(set_to_none=True)
        memory[name] = measure_memory(run, options.device)
    keep_freed_memory()
    times = interleaved_rounds(steps, options.repeats, lambda: synchronize(options.device))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    real, slots = int(batch["attention_mask"].sum()), batch["attention_mask"].numel()
    rates = gemm_rates(dtype, options.device, [*GEMM_SHAPES, *layer_shapes(config, real)])
    rate = max(rates.values())
    figures = {
        name: {
            "seconds": seconds[name],
            "seconds_least": min(times[name]),
            "seconds_most": max(times[name]),
            "samples_per_second": options.batch_size / seconds[name],
            "tokens_per_second": real / seconds[name],
            "gflops_per_step": flops[name] / 1e9,
            "share_of_bound": flops[name] / rate / seconds[name],
            "useful_share_of_bound": flops["padding-free"] / rate / seconds[name],
            **_gibibytes(memory[name]),
        }
        for name in steps
    }
    columns = ["samples_per_second", "tokens_per_second", "gflops_per_step", "share_of_bound", "useful_share_of_bound"]
    columns += ["peak_gibibytes", "peak_above_weights_gibibytes"]
    print(f"{real} real tokens in {slots} slots ({1 - real / slots:.0%} padding), {options.batch_size} samples")
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s")
    print_table(["training step", *columns], [[name, *(row[c] for c in columns)] for name, row in figures.items()])
    speedups = [a / b for a, b in zip(times["padded"], times["padding-free"], strict=True)]
    result = {
        "speedup_padding_free": statistics.median(speedups),
        "padding_share": 1 - real / slots,
        "share_of_bound": figures["padding-free"]["share_of_bound"],
        "tokens_per_second": figures["padding-free"]["tokens_per_second"],
        "samples_per_second": figures["padding-free"]["samples_per_second"],
        "parameters": model.num_parameters(),
        "steps": figures,
        "gemm_gflops_per_second": {"x".join(map(str, shape)): value / 1e9 for shape, value in rates.items()},
        "settings": vars(options),
    }
    print(write_section("training", device_name(options.device), result, describe_device(options.device)))


if __name__ == "__main__":
    main()
