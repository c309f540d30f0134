"""How the cost of an action chunk grows: `python -m benchmarks.scaling`.

Varies one thing at a time (camera views, resolution of the VLM's images, length of the thought, chunk, flow steps, batch)
around three views of 224 px, no thought, a chunk of 50, 10 flow steps and one observation, on a model of about a quarter of
the paper's width and a third of its depth. Beside the measured times stand the counted FLOPs at the machine's rate and the
counted bytes of weights at its memory bandwidth, which no time can go below. Writes JSON and a figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import reporting
from benchmarks.latency_models import BOUND_SIZES, SCALES, NoText, random_model, syvla_config, syvla_inputs
from benchmarks.machine_bound import (
    MachineBound,
    Work,
    counting,
    describe_device,
    device_name,
    dtype_of,
    measure_bound,
    seconds_of,
)
from benchmarks.reporting import print_table, write_section

PATCH = 14  # pixels, Qwen2.5-VL

BASE = {"views": 3, "resolution": 224, "thought": 0, "chunk": 50, "steps": 10, "batch": 1}
SWEEPS: dict[str, tuple[int, ...]] = {
    "views": (1, 2, 3),
    "resolution": (112, 224, 336, 448),
    "thought": (0, 8, 16, 32),
    "chunk": (10, 25, 50, 100),
    "steps": (1, 2, 4, 10, 20),
    "batch": (1, 2, 4, 8),
}
UNITS = {
    "views": "camera views",
    "resolution": "side of the VLM's images, px",
    "thought": "thought, tokens",
    "chunk": "actions per chunk",
    "steps": "flow steps",
    "batch": "observations per batch",
}


def make_call(scale: str, point: Mapping[str, int], dtype: torch.dtype, device: str) -> tuple[Any, Callable[[], Any]]:
    """A model and its call at one point.

    Raises:
        ValueError: If the resolution is no multiple of two patches.
    """
    from syvla.modeling_syvla import SyVLAModel

    grid, rest = divmod(point["resolution"], PATCH)
    if rest or grid % 2:
        raise ValueError(f"resolution: expected a multiple of {2 * PATCH} px, got {point['resolution']}")
    config = syvla_config(scale, point["views"], chunk_size=point["chunk"])
    model: Any = random_model(lambda: SyVLAModel(config), dtype, device)
    inputs = syvla_inputs(config, dtype, device, grid=grid, batch_size=point["batch"])
    options: dict[str, Any] = {"num_steps": point["steps"]}
    if tokens := point["thought"]:
        options |= {"think": True, "max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        options["tokenizer"] = NoText()
    return model, lambda: model.predict_actions(**inputs, **options)


@torch.no_grad()
def measure_sweep(
    name: str, values: Sequence[int], scale: str, dtype: torch.dtype, device: str, repeats: int
) -> list[dict[str, float]]:
    """Median seconds and counted work at each value. The values take turns after a call to warm up."""
    calls, rows = {}, []
    for value in values:
        model, call = make_call(scale, {**BASE, name: value}, dtype, device)
        with counting(model) as count:
            call()
        model.optimize_for_inference()
        calls[value] = call
        rows.append({"value": value, "gflop": count.total / 1e9, "weight_gbytes": count.weight_bytes / 1e9})
    for call in calls.values():
        call()
    seconds: dict[int, list[float]] = {value: [] for value in values}
    for _ in range(repeats):
        for value, call in calls.items():
            seconds[value].append(seconds_of(call, device))
    return [{**row, "seconds": median(seconds[int(row["value"])])} for row in rows]


def with_bounds(rows: list[dict[str, float]], bound: MachineBound) -> list[dict[str, float]]:
    """Beside every measured time the least that FLOPs and weight bytes allow, and the share of their larger one."""
    result = []
    for row in rows:
        work = Work(round(row["gflop"] * 1e9), round(row["weight_gbytes"] * 1e9))
        result.append(
            {
                **row,
                "flop_seconds": work.flops / bound.flops_per_second,
                "weight_seconds": work.weight_bytes / bound.bytes_per_second,
                "share_of_bound": bound.seconds(work) / row["seconds"],
            }
        )
    return result


def draw(sweeps: Mapping[str, list[dict[str, float]]], title: str, path: Path) -> None:
    """One panel per sweep: measured seconds, and what FLOPs and weight bytes alone would take."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(sweeps))
    lines = -(-len(sweeps) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    curves = (
        ("seconds", "measured", "o-"),
        ("flop_seconds", "FLOPs / rate", "--"),
        ("weight_seconds", "bytes / s", ":"),
    )
    for panel, (name, rows) in zip(panels, sweeps.items(), strict=False):
        for key, label, line in curves:
            panel.plot([row["value"] for row in rows], [row[key] for row in rows], line, label=label)
        panel.set(xlabel=UNITS[name], ylabel="seconds", ylim=(0, None), xticks=[row["value"] for row in rows])
    for panel in panels[len(sweeps) :]:
        panel.remove()
    panels[0].legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), help="what to vary")
    parser.add_argument("--points", type=int, help="only the first points of each sweep")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)
    dtype = dtype_of(options.dtype)
    bound = measure_bound(dtype, options.device, **BOUND_SIZES[options.scale])
    sweeps = {
        name: measure_sweep(name, SWEEPS[name][: options.points], options.scale, dtype, options.device, options.repeats)
        for name in options.sweeps
    }
    sweeps = {name: with_bounds(rows, bound) for name, rows in sweeps.items()}
    columns = ("value", "seconds", "gflop", "weight_gbytes", "share_of_bound")
    rows = [[name, *(row[key] for key in columns)] for name, points in sweeps.items() for row in points]
    print_table(["varied", "value", "s", "GFLOP", "weights GB", "of bound"], rows)
    name = "scaling" if options.scale == "small" else f"scaling_{options.scale}"
    device = device_name(options.device)
    settings = {"scale": options.scale, "dtype": options.dtype, "repeats": options.repeats, "base": BASE}
    result = {"settings": settings, "bound": bound.as_dict(), "sweeps": sweeps}
    print(write_section(name, device, result, describe_device(options.device)))
    figure = reporting.RESULTS / f"{name}_{torch.device(options.device).type}.png"
    draw(sweeps, f"Action chunk, {options.scale} model, {options.dtype}, {device}", figure)
    print(figure)


if __name__ == "__main__":
    main()
