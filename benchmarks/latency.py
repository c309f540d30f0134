"""Time from observation to action chunk, SyVLA beside `transformers`' PI0: `python -m benchmarks.latency`.

Both at their published sizes with random weights, same dtype, same views, text, chunk and flow steps (what exactly:
`benchmarks/latency_models.py`). They take turns, each in a process of its own, so that a busy spell of the machine hits
both: a round is SyVLA, then PI0. Every round of every model is a piece that is written to `--pieces` when it is measured;
the same command goes on where an earlier one was stopped, and the report is made of the pieces that are there.

Beside the times stand the machine's own bound (`benchmarks/machine_bound.py`, measured in the same process before and
after the calls), the work counted per phase, and what share of the bound each phase reaches.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.latency_models import BOUND_SIZES, CALLS, POLICIES, SCALES
from benchmarks.latency_report import print_report, summarize
from benchmarks.machine_bound import describe_device, device_name, dtype_of, measure_bound
from benchmarks.operator_times import operator_seconds, shares_of_difference
from benchmarks.phases import Phases
from benchmarks.reporting import write_section

FORMS = {"compile": "compiled", "pack_weights": "packed"}
"""Options of `optimize_for_inference` and what a result that was measured with them is called."""


def measure_piece(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """One model, built, warmed up while its work is counted, and measured; in the process that this is called in."""
    dtype, device, scale = dtype_of(settings["dtype"]), settings["device"], settings["scale"]
    sizes = BOUND_SIZES[scale]
    before = measure_bound(dtype, device, **sizes)
    policy = POLICIES[name](
        scale, dtype, device, views=settings["views"], thought_tokens=settings.get("thought_tokens", 0)
    )
    parameters = sum(p.numel() for p in policy.model.parameters())
    phases = Phases(policy.spans, device)
    chosen = {call: run for call, run in policy.calls.items() if call in settings["calls"]}
    calls: dict[str, Any] = {}
    with torch.no_grad():  # in inference mode, layers are not taken apart into the products that are counted
        for call_name, call in chosen.items():
            work = {span: [w.flops, w.weight_bytes] for span, w in phases.work(call, policy.model).items()}
            calls[call_name] = {"work": work, "seconds": [], "language_calls": []}
        # What was counted is warm, unless it became another program.
        changed = policy.optimize({name: settings.get(name, False) for name in FORMS}) is not None
        for call_name, call in chosen.items():
            if changed and (settings.get("compile") or call_name == "action"):
                call()
        for call_name, call in chosen.items():
            for _ in range(settings["repeats"]):
                seconds, each = phases.seconds(call)
                calls[call_name]["seconds"].append(seconds)
                calls[call_name]["language_calls"].append(each["language"])
        operators = None
        if policy.context is not None:
            whole = operator_seconds(policy.calls["refresh"], device)
            operators = shares_of_difference(whole, operator_seconds(policy.context, device))
    after = measure_bound(dtype, device, **sizes)
    return {
        "settings": settings,
        "model": name,
        "parameters": parameters,
        "bounds": [before.as_dict(), after.as_dict()],
        "phases": policy.phases,
        "calls": calls,
        "denoise_operators": operators,
    }


def read_piece(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """A piece measured earlier with the same settings."""
    if not path.is_file():
        return None
    piece = json.loads(path.read_text(encoding="utf-8"))
    return piece if piece["settings"] == settings else None


def own_settings(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those that a model's pieces depend on: PI0 neither thinks nor is compiled, and has one call."""
    if name == "pi0":
        return {**{k: v for k, v in settings.items() if k not in ("thought_tokens", *FORMS)}, "calls": ["action"]}
    return settings


def form_of(settings: dict[str, Any]) -> str:
    """Part of the names of pieces: both models are measured again for every form, so that they stay side by side."""
    return "".join(f"-{word}" for option, word in FORMS.items() if settings.get(option))


def measure_all(settings: dict[str, Any], rounds: int, folder: Path, budget: float) -> list[dict[str, Any]]:
    """The pieces of all rounds, measured where they are missing.

    Args:
        settings: What a piece depends on.
        rounds: How often the models take turns.
        folder: Of the pieces.
        budget: Seconds after which no further piece is started.
    """
    start, longest, pieces = time.monotonic(), 0.0, []
    for number in range(rounds):
        for name in POLICIES:
            own = own_settings(name, settings)
            path = folder / f"{name}{form_of(settings)}-{number}.json"
            piece = read_piece(path, own)
            if piece is None:
                begun = time.monotonic()
                if begun - start + longest > budget:
                    continue
                print(f"round {number + 1} of {rounds}: {name}", flush=True)
                _run_child(own, name, path)
                longest = max(longest, time.monotonic() - begun)
                piece = read_piece(path, own)
                assert piece is not None
            pieces.append(piece)
    return pieces


def _run_child(settings: dict[str, Any], name: str, path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.latency", "--piece", name, "--settings", json.dumps(settings)]
    done = subprocess.run([*command, "--pieces", str(path)], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: the measuring process ended with {done.returncode}: {done.stderr[-2000:]}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", help="of both models")
    parser.add_argument("--scale", choices=SCALES, default="paper", help="small: a scaled-down pair, about a minute")
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="how often the models take turns")
    parser.add_argument("--repeats", type=int, default=2, help="measured calls per round")
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=list(CALLS), help="what is measured, of SyVLA")
    parser.add_argument("--thought-tokens", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="compile SyVLA's denoise loop")
    parser.add_argument("--pack-weights", action="store_true", help="SyVLA's weights in oneDNN's own layout (CPU)")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no piece is started")
    parser.add_argument("--pieces", type=Path, help="folder of the pieces; default: outputs/latency/<settings>")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--piece", choices=list(POLICIES), help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.piece:
        piece = measure_piece(options.settings, options.piece)
        options.pieces.write_text(json.dumps(piece), encoding="utf-8")
        return
    names = ("device", "dtype", "scale", "views", "repeats", "calls", "thought_tokens", *FORMS)
    settings = {name: getattr(options, name) for name in names}
    settings["calls"] = [call for call in CALLS if call in ("action", "refresh", *options.calls)]
    folder = options.pieces or Path("outputs/latency") / "-".join(
        str(settings[name]) for name in ("device", "dtype", "scale", "views")
    )
    folder.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        for name in POLICIES:
            for path in folder.glob(f"{name}{form_of(settings)}-[0-9]*.json"):
                path.unlink()
    pieces = measure_all(settings, options.rounds, folder, options.budget)
    if {piece["model"] for piece in pieces} != set(POLICIES):
        print(f"not both models are measured yet; the same command goes on ({folder})")
        return
    result = summarize(pieces)
    print_report(result)
    name = "latency" if options.scale == "paper" else f"latency_{options.scale}"
    forms = [word for option, word in FORMS.items() if settings[option]]
    section = ", ".join([device_name(options.device), options.dtype, *forms])
    print(write_section(name, section, result, describe_device(options.device)))


if __name__ == "__main__":
    main()
