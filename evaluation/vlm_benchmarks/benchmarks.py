"""The five benchmarks of the paper's Table 2: their lmms-eval tasks, datasets, splits, sizes and units."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

YES_NO_PROMPT = "\nPlease answer yes or no."
"""Asked after HallusionBench questions, which do not say how to answer; VLMEvalKit asks the same."""


@dataclass(frozen=True)
class Benchmark:
    """One column of the table.

    Args:
        name: As on the command line, and the column's key in reports.
        column: As the paper prints it.
        task: Task of lmms-eval 0.7.3.
        dataset: Hub repository of the task.
        config: Dataset config, None for the default one.
        split: Split that is evaluated.
        rows: Rows of the official split, from the dataset cards.
        folder: Folder below `--data-root`.
        unit: Unit of the headline number.
    """

    name: str
    column: str
    task: str
    dataset: str
    config: str | None
    split: str
    rows: int
    folder: str
    unit: str


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "docvqa",
            "DocVQA",
            "docvqa_val",
            "lmms-lab-encoder/DocVQA",
            "DocVQA",
            "validation",
            5349,
            "DocVQA",
            "ANLS %",
        ),
        Benchmark("ai2d", "AI2D", "ai2d", "lmms-lab-encoder/ai2d", None, "test", 3088, "ai2d", "accuracy %"),
        Benchmark("mmmu", "MMMU", "mmmu_val", "lmms-lab-encoder/MMMU", None, "validation", 900, "MMMU", "accuracy %"),
        Benchmark(
            "mme", "MME", "mme", "lmms-lab-encoder/MME", None, "test", 2374, "MME", "perception + cognition, of 2800"
        ),
        Benchmark(
            "hallusionbench",
            "HallBench",
            "hallusion_bench_image",
            "lmms-lab-encoder/HallusionBench",
            None,
            "image",
            951,
            "HallusionBench",
            "%",
        ),
    )
}


def chosen_benchmarks(names: Sequence[str] | None) -> list[Benchmark]:
    """The benchmarks with these names, in the table's order; all when none are named.

    Raises:
        ValueError: If a name is unknown; it lists the known ones.
    """
    for name in names or ():
        if name not in BENCHMARKS:
            close = difflib.get_close_matches(name.lower(), BENCHMARKS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"tasks: {name!r} is unknown, expected any of {', '.join(BENCHMARKS)}{hint}")
    return [benchmark for name, benchmark in BENCHMARKS.items() if not names or name in names]
