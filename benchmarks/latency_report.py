"""Figures, table and goals of `benchmarks.latency` out of its measured pieces."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from benchmarks.machine_bound import MachineBound, Work
from benchmarks.reporting import print_table

CHUNK = 50
GOALS = {"ratio_action_to_pi0": 0.65, "ratio_refresh_to_pi0": 0.25, "denoise_share_of_bound": 0.7}
"""The ratios at most, the share at least."""

Piece = dict[str, Any]


def summarize(pieces: list[Piece]) -> dict[str, Any]:
    """Medians over all pieces of a model, and the three figures that the goals are about."""
    bounds = [bound for piece in pieces for bound in piece["bounds"]]
    rates = {key: [bound[key] * 1e9 for bound in bounds] for key in ("gflops_per_second", "gbytes_per_second")}
    # The machine's best, not its rate at the moment: shares cannot profit from a slow one.
    bound = MachineBound(max(rates["gflops_per_second"]), max(rates["gbytes_per_second"]))
    models = {
        name: summarize_model([piece for piece in pieces if piece["model"] == name], bound)
        for name in dict.fromkeys(piece["model"] for piece in pieces)
    }
    action = {name: model["calls"]["action"] for name, model in models.items()}
    pi0 = action["pi0"]["p50_seconds"]
    return {
        "ratio_action_to_pi0": action["syvla"]["p50_seconds"] / pi0,
        "ratio_refresh_to_pi0": models["syvla"]["calls"]["refresh"]["p50_seconds"] / pi0,
        "denoise_share_of_bound": action["syvla"]["phases"]["denoise"]["share_of_bound"],
        "goals": GOALS,
        "denoise_operators": next(p["denoise_operators"] for p in pieces if p["model"] == "syvla"),
        "settings": next(p["settings"] for p in pieces if p["model"] == "syvla"),
        "bound": {**bound.as_dict(), **{f"{key}_seen": [x / 1e9 for x in seen] for key, seen in rates.items()}},
        "models": models,
    }


def summarize_model(pieces: list[Piece], bound: MachineBound) -> dict[str, Any]:
    """Times of all calls of one model, phase by phase."""
    calls = {}
    for name in pieces[0]["calls"]:
        runs = [run for piece in pieces for run in piece["calls"][name]["seconds"]]
        work = {span: Work(*counted) for span, counted in pieces[0]["calls"][name]["work"].items()}
        phases = {}
        for phase, (added, subtracted) in pieces[0]["phases"].items():
            seconds = [sum(run[s] for s in added) - sum(run[s] for s in subtracted) for run in runs]
            phases[phase] = timing(seconds, _phase_work(work, added, subtracted), bound)
        total = timing([run["total"] for run in runs], work["total"], bound)
        calls[name] = {
            **total,
            "actions_per_second": CHUNK / total["p50_seconds"],
            "phases": {phase: row for phase, row in phases.items() if row["p50_seconds"] > 0},
        }
        if name == "think":
            calls[name] |= summarize_thought([piece["calls"][name] for piece in pieces])
    return {
        "parameters": pieces[0]["parameters"],
        "calls": calls,
    }


def summarize_thought(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of one thought token, with the choice of the token, and of the queries on the thought's cache."""
    tokens, queries = [], []
    for call in calls:
        for seconds, language in zip(call["seconds"], call["language_calls"], strict=True):
            # The first call is the prompt, the last one the queries.
            if len(language) > 2:
                rest = seconds["slow"] - seconds["vision"] - language[0] - language[-1]
                tokens.append(rest / (len(language) - 2))
                queries.append(language[-1])
    return {"seconds_per_token": median(tokens), "seconds_of_queries": median(queries)} if tokens else {}


def timing(seconds: list[float], work: Work, bound: MachineBound) -> dict[str, Any]:
    """p50, p95 and, where work was counted, the bound and its share."""
    p50 = median(seconds)
    row: dict[str, Any] = {"p50_seconds": p50, "p95_seconds": float(np.quantile(seconds, 0.95)), "calls": len(seconds)}
    row |= {"gflop": work.flops / 1e9, "weight_gbytes": work.weight_bytes / 1e9}
    if p50 > 0 and work.flops:
        row |= {"bound_seconds": bound.seconds(work), "share_of_bound": bound.seconds(work) / p50}
    return row


def _phase_work(work: dict[str, Work], added: list[str], subtracted: list[str]) -> Work:
    plus, minus = (sum((work[span] for span in spans), Work()) for spans in (added, subtracted))
    return Work(plus.flops - minus.flops, plus.weight_bytes - minus.weight_bytes)


def print_report(result: dict[str, Any]) -> None:
    rows = []
    for model, figures in result["models"].items():
        for call, timed in figures["calls"].items():
            for phase, row in {"total": timed, **timed["phases"]}.items():
                shown = [row["p50_seconds"], row["p95_seconds"], row["gflop"]]
                shown.append(row.get("share_of_bound", "-"))
                shown.append(timed["actions_per_second"] if phase == "total" else "")
                rows.append([model if phase == "total" else "", call if phase == "total" else "", phase, *shown])
    print_table(["model", "call", "phase", "p50 s", "p95 s", "GFLOP", "of bound", "actions/s"], rows)
    if "seconds_per_token" in (thought := result["models"]["syvla"]["calls"].get("think", {})):
        print(f"one thought token: {thought['seconds_per_token']:.3f} s", end="; ")
        print(f"queries on its cache: {thought['seconds_of_queries']:.3f} s")
    operators = ", ".join(f"{name.removeprefix('aten::')} {s:.0%}" for name, s in result["denoise_operators"].items())
    print(f"where SyVLA's flow steps spend their time: {operators}")
    bound = result["bound"]
    print(f"machine: {bound['gflops_per_second']:.0f} GFLOP/s, {bound['gbytes_per_second']:.0f} GB/s")
    for name, goal in GOALS.items():
        relation = "at least" if name.endswith("bound") else "at most"
        print(f"{name} {result[name]:.3f} (goal: {relation} {goal})")
