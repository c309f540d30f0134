"""Our column of a table out of the results of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from syvla.evaluation.published_tables import Cell, PaperTable, mean_and_interval
from syvla.evaluation.success_rate import wilson_interval

from .plans import Plan
from .scales import SUITES, TASKS, Scale

COUNTED = ("AI2D", "MMMU")
"""Benchmarks whose score is the share of right answers. The others' are means of graded or of combined scores."""

Cells = dict[str, dict[str, Cell | str]]


def our_cells(table: PaperTable, plan: Plan, scale: Scale, seeds: Sequence[int]) -> tuple[Cells, list[dict[str, Any]]]:
    """Our numbers, and one entry per finished run with what it gave.

    Args:
        table, plan: The table and how it comes about.
        scale: Where the results lie.
        seeds: Which runs to take; those without a result are left out.
    """
    found = ((m, a, s) for m in plan.all_measures for a in plan.arms for s in seeds)
    runs = [run for measures, arm, seed in found if (run := _finished(measures, scale, arm, seed))]
    cells: Cells = {row: dict.fromkeys(table.columns, reason) for row, reason in plan.not_run.items()}
    for row, arm in {**plan.rows, **plan.extra_rows}.items():
        summaries = [run["results"] for run in runs if run["arm"] == arm]
        if summaries:
            cells[row] = _columns(plan, summaries) if plan.columns else _row(table, plan.measures, row, summaries)
    return cells, runs


def success_note(plan: Plan, scale: Scale, seeds: Sequence[int]) -> list[str]:
    """Success of the plan's runs on the ablation task, as a line below the table; empty while there is none."""
    parts = []
    for row, arm in plan.rows.items():
        found = [scale.measure(arm, seed, "ablation")["ablation"].result for seed in seeds]
        counts = [list(_condensed(result["summary"]).values()) for result in found if result is not None]
        if counts:
            parts.append(f"{row} {rate_cell(counts).text()}")
    return [f"Success of the same checkpoints on the task of Table 4: {'; '.join(parts)}."] if parts else []


def _finished(measures: str, scale: Scale, arm: str, seed: int) -> dict[str, Any] | None:
    """Results of one run, None unless every measurement is there."""
    training = scale.train(arm, seed, measures).result
    found = {name: job.result for name, job in scale.measure(arm, seed, measures).items()}
    if training is None or any(result is None for result in found.values()):
        return None
    results = {name: _condensed(result["summary"]) for name, result in found.items() if result is not None}
    rl = {"rl": training["summary"]} if "summary" in training else {}
    return {"arm": arm, "seed": seed, "training_seconds": training["seconds"], **rl, "results": results}


def _columns(plan: Plan, summaries: Sequence[dict[str, Any]]) -> dict[str, Cell | str]:
    """Cells of a row in a table in which every column has runs of its own."""
    cells: dict[str, Cell | str] = {}
    for column, task in plan.columns.items():
        if counts := [list(s[task].values()) for s in summaries if task in s]:
            cells[column] = rate_cell(counts)
    return cells


def _condensed(summary: dict[str, Any]) -> dict[str, Any]:
    """Counts per task, or scores per benchmark."""
    if "benchmarks" in summary:
        fields = ("column", "score", "rows", "unparsable")
        return {name: {key: b[key] for key in fields if key in b} for name, b in summary["benchmarks"].items()}
    return {name: {key: task[key] for key in ("successes", "episodes")} for name, task in summary["tasks"].items()}


def _row(table: PaperTable, measures: str, row: str, summaries: Sequence[dict[str, Any]]) -> dict[str, Cell | str]:
    if measures == "ablation":
        return {table.columns[0]: rate_cell([list(s["ablation"].values()) for s in summaries])}
    if measures == "libero":
        members = [
            [task for name, task in s["libero"].items() if name.startswith(SUITES[row] + "_")] for s in summaries
        ]
        return {table.columns[0]: rate_cell(members, 100.0)}
    if measures == "benchmarks":
        return {column: benchmark_cell(column, [_benchmark(s, column) for s in summaries]) for column in table.columns}
    if table.number == "6":
        task = dict(zip(table.rows, TASKS.values(), strict=True))[row]
        rates = [s["in_domain"][task]["successes"] / s["in_domain"][task]["episodes"] for s in summaries]
        return {table.columns[0]: Cell(stdev(rates), note=f" (n={len(rates)})") if len(rates) > 1 else "one seed"}
    cells: dict[str, Cell | str] = {}
    for split, name in (("ID", "in_domain"), ("OoD", "ood")):
        for paper_task, task in TASKS.items():
            cells[f"{split} {paper_task}"] = rate_cell([[s[name][task]] for s in summaries])
        rates = [fmean(t["successes"] / t["episodes"] for t in s[name].values()) for s in summaries]
        cells[f"{split} Average"] = Cell(*mean_and_interval(rates), seeds=len(rates))
    return cells


def rate_cell(groups: Sequence[Sequence[dict[str, int]]], unit: float = 1.0) -> Cell:
    """Success rate over seeds.

    Args:
        groups: Per seed, counts of the tasks to pool.
        unit: 100 for percent.
    """
    successes = [sum(task["successes"] for task in tasks) for tasks in groups]
    episodes = [sum(task["episodes"] for task in tasks) for tasks in groups]
    mean, interval = mean_and_interval([s / e for s, e in zip(successes, episodes, strict=True)])
    low, high = wilson_interval(sum(successes), sum(episodes))
    seeds = None if interval is None else (unit * interval[0], unit * interval[1])
    return Cell(unit * mean, seeds, (unit * low, unit * high), len(groups))


def benchmark_cell(column: str, found: Sequence[dict[str, Any]]) -> Cell:
    """Score of a benchmark over seeds; of one that counts right answers with Wilson's interval of all rows.

    Args:
        column: Its column.
        found: Per seed `score`, and the number of `rows`.
    """
    mean, interval = mean_and_interval([float(benchmark["score"]) for benchmark in found])
    wilson = None
    if column in COUNTED:
        rows = [int(benchmark["rows"]) for benchmark in found]
        right = [round(float(b["score"]) * count / 100) for b, count in zip(found, rows, strict=True)]
        low, high = wilson_interval(sum(right), sum(rows))
        wilson = (100 * low, 100 * high)
    return Cell(mean, interval, wilson, len(found))


def _benchmark(summary: dict[str, Any], column: str) -> dict[str, Any]:
    found: dict[str, Any] = next(b for b in summary["benchmarks"].values() if b["column"] == column)
    return found
