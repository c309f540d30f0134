"""The paper's tables as data, and a table of our results beside them.

Numbers are those of "Scaling by Diversified Experience for Vision-Language-Action Models", sections 4.2 to 4.4 and
appendix C, as printed there. A missing value is one that the paper marks with "-".
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

TASKS = ("Task 1", "Task 2", "Task 3", "Average")
BENCHMARK_COLUMNS = ("DocVQA", "AI2D", "MMMU", "MME", "HallBench")


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        number: As in the paper.
        title: What it shows.
        unit: What the numbers are.
        columns: Column names.
        rows: Row name to values, in the order of the columns.
        ours: The row that is the paper's own method, marked in print; None where every row is.
    """

    number: str
    title: str
    unit: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    ours: str | None = None

    def value(self, row: str, column: str) -> float | None:
        """The paper's number, None where it gives none."""
        values = self.rows.get(row)
        return None if values is None or column not in self.columns else values[self.columns.index(column)]


_SUCCESS = "success rate"
_NO_VQA = (None,) * 5

PAPER_TABLES: dict[str, PaperTable] = {
    table.number: table
    for table in (
        PaperTable(
            "1",
            "Success on the real tasks, in domain (ID) and out of distribution (OoD)",
            _SUCCESS,
            tuple(f"{split} {task}" for split in ("ID", "OoD") for task in TASKS),
            {
                "OpenVLA-OFT": (0.71, 0.29, 0.36, 0.45, 0.55, 0.11, 0.07, 0.24),
                "GR00T": (0.71, 0.21, 0.21, 0.38, 0.64, 0.07, 0.00, 0.24),
                "Wall-Oss": (0.50, 0.18, 0.14, 0.27, 0.14, 0.04, 0.00, 0.06),
                "Pi0 (pretrained)": (0.93, 0.39, 0.57, 0.63, 0.78, 0.29, 0.36, 0.48),
                "Pi0 (from scratch)": (0.64, 0.21, 0.29, 0.38, 0.50, 0.14, 0.14, 0.26),
                "ChatVLA": (0.21, 0.29, 0.14, 0.21, 0.00, 0.21, 0.07, 0.09),
                "SyVLA": (0.86, 0.68, 0.64, 0.73, 0.78, 0.57, 0.57, 0.64),
            },
            "SyVLA",
        ),
        PaperTable(
            "2",
            "Five vision-language benchmarks",
            "ANLS %, accuracy %, accuracy %, points, %",
            BENCHMARK_COLUMNS,
            {
                "OpenVLA-OFT": _NO_VQA,
                "Wall-Oss": (63.62, 58.60, 37.11, 1146.56, 36.57),
                "GR00T": _NO_VQA,
                "Pi0": _NO_VQA,
                "ChatVLA": (83.30, 67.36, 37.40, 1435.0, 39.90),
                "SyVLA": (80.01, 67.70, 35.78, 1795.0, 42.53),
            },
            "SyVLA",
        ),
        PaperTable(
            "3",
            "Ablations on Task 1, folding a shirt",
            _SUCCESS,
            ("Success",),
            {
                "w/o CoT": (0.79,),
                "w/o Intention Decoupling": (0.43,),
                "w/o RL": (0.71,),
                "w/o Expert Dataset": (0.21,),
                "w/o Similar Sample": (0.79,),
                "w/ Standard Advantage": (0.00,),
                "SyVLA (all)": (0.86,),
            },
            "SyVLA (all)",
        ),
        PaperTable(
            "4",
            "Quantile of the mask of Intention Decoupling",
            _SUCCESS,
            ("Success",),
            {
                f"{q}%": (rate,)
                for q, rate in ((0, 0.43), (3, 0.73), (5, 0.86), (8, 0.77), (10, 0.86), (15, 0.82), (20, 0.64))
            },
            "5%",
        ),
        PaperTable(
            "5",
            "Number N of Feature Query Tokens",
            _SUCCESS,
            ("Success",),
            {str(n): (rate,) for n, rate in ((5, 0.39), (10, 0.65), (15, 0.78), (20, 0.86), (25, 0.83), (30, 0.87))},
            "20",
        ),
        PaperTable(
            "6",
            "Five random seeds",
            "standard deviation of the success rate",
            ("Standard deviation",),
            {"Fold Shirt": (0.035,), "Calculating": (0.036,), "Wrapper": (0.070,)},
        ),
        PaperTable(
            "8",
            "LIBERO",
            "success rate, %",
            ("Success",),
            {"Spatial": (87.7,), "Object": (84.0,), "Goal": (87.3,), "Long": (65.7,)},
        ),
        PaperTable(
            "9",
            "Mixed data and Intention Decoupling against five vision-language benchmarks",
            "ANLS %, accuracy %, accuracy %, points, %",
            BENCHMARK_COLUMNS,
            {
                "All": (80.01, 67.7, 35.78, 1795.0, 42.53),
                "w/o Intention Decoupling": (63.62, 71.76, 38.67, 1648.12, 41.7),
                "w/o Mixed Data": (0.675, 0.365, 0.091, 1255.34, 22.25),
                "w/o Both": (0.0, 0.0625, 0.018, 1237.83, 18.71),
            },
            "All",
        ),
        PaperTable(
            "10",
            "Similar samples in RL on Tasks 2 and 3",
            _SUCCESS,
            ("Task 2", "Task 3"),
            {"w/o Similar Retrieval": (0.56, 0.571), "SyVLA": (0.68, 0.643)},
            "SyVLA",
        ),
        PaperTable(
            "11",
            "RL methods on Task 1, folding a shirt",
            _SUCCESS,
            ("Success",),
            {"Pi-RL": (0.714,), "SimpleVLA-RL": (0.357,), "SyVLA": (0.86,)},
            "SyVLA",
        ),
    )
}
"""By number. Table 7 lists hyper-parameters: they are `training/recipes/finetune.yaml` and a test compares them."""


def paper_table(number: str) -> PaperTable:
    """The table of that number.

    Raises:
        ValueError: If there is none; the message lists the known ones.
    """
    if number not in PAPER_TABLES:
        close = difflib.get_close_matches(number, PAPER_TABLES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        why = " Table 7 lists hyper-parameters, see training/recipes/." if number == "7" else ""
        raise ValueError(f"table: expected one of {', '.join(PAPER_TABLES)}, got {number!r}{hint}.{why}".rstrip("."))
    return PAPER_TABLES[number]


# ---------------------------------------------------------------------- statistics over seeds


def mean_and_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, tuple[float, float] | None]:
    """Mean over seeds and the two-sided Student interval of that mean; None instead of an interval for one seed, and for seeds
    that came out alike: their interval of no width would claim what few seeds cannot know.

    The interval is about seeds (training and evaluation noise together). Two seeds give a very wide one; that is what two
    seeds know.

    Raises:
        ValueError: If there are no values.
    """
    if not values:
        raise ValueError("values: expected at least one seed, got none")
    mean = fmean(values)
    if len(set(values)) == 1:
        return mean, None
    from scipy.stats import t

    quantile = float(t.ppf(0.5 + confidence / 2, df=len(values) - 1))
    half = quantile * stdev(values) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


# ---------------------------------------------------------------------- print


@dataclass(frozen=True)
class Cell:
    """One of our numbers.

    Attributes:
        value: Mean over seeds.
        interval: Of the mean over seeds; None for one seed, and for seeds that came out alike.
        wilson: Wilson interval of all episodes of all seeds together; None for numbers that are no rates.
        seeds: How many seeds it is the mean of; None where that is not printed.
        note: Printed behind the number, such as a footnote mark.
    """

    value: float
    interval: tuple[float, float] | None = None
    wilson: tuple[float, float] | None = None
    seeds: int | None = None
    note: str = ""

    def text(self) -> str:
        number = f"{self.value:.3f}" if abs(self.value) < 10 else f"{self.value:.1f}"
        parts = [number + self.note]
        digits = 3 if abs(self.value) < 10 else 1
        if self.interval is None and self.seeds is not None:
            parts.append(f"({self.seeds} seed{'s' if self.seeds > 1 else ''})")
        if self.interval is not None:
            count = "" if self.seeds is None else f"{self.seeds} "
            parts.append(f"{count}seeds [{self.interval[0]:.{digits}f}, {self.interval[1]:.{digits}f}]")
        if self.wilson is not None:
            parts.append(f"Wilson [{self.wilson[0]:.{digits}f}, {self.wilson[1]:.{digits}f}]")
        return " ".join(parts)


def markdown_table(
    table: PaperTable, ours: Mapping[str, Mapping[str, Cell | str]], scale: str, extra_rows: Sequence[str] = ()
) -> str:
    """Ours beside the paper's: a column of each, or where a table has several columns, a line of each.

    Args:
        table: The paper's.
        ours: Row to column to our number, or a word such as "not run here". What is absent prints as "-".
        scale: What our numbers were measured at; it stands at our numbers, since no number means anything without it.
        extra_rows: Rows of ours that the paper does not have.

    Raises:
        ValueError: If `scale` is empty.
    """
    if not scale:
        raise ValueError("scale: expected what our numbers were measured at, got an empty text")
    rows = [*table.rows, *extra_rows]
    mark = {row: f"**{row}**" if row == table.ours else row for row in rows}
    lines: list[list[str]]
    if len(table.columns) == 1:
        (column,) = table.columns
        lines = [["", "paper", f"ours ({scale})"]]
        lines += [[mark[row], _plain(table.value(row, column)), _ours(ours.get(row, {}).get(column))] for row in rows]
    else:
        lines = [["", "", *table.columns]]
        for row in rows:
            if row in table.rows:
                lines.append([mark[row], "paper", *(_plain(table.value(row, column)) for column in table.columns)])
            if row in ours:
                numbers = [_ours(ours[row].get(column)) for column in table.columns]
                lines.append([mark[row], f"ours ({scale})", *numbers])
    lines.insert(1, ["---"] * len(lines[0]))
    title = f"## Table {table.number}: {table.title} ({table.unit})\n\n"
    return title + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cells_to_json(ours: Mapping[str, Mapping[str, Cell | str]]) -> dict[str, Any]:
    """JSON form of our numbers."""
    return {
        row: {
            column: cell
            if isinstance(cell, str)
            else {
                "value": cell.value,
                "seeds": cell.seeds,
                "seed_interval": cell.interval,
                "wilson_interval": cell.wilson,
                "note": cell.note,
            }
            for column, cell in columns.items()
        }
        for row, columns in ours.items()
    }


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _ours(cell: Cell | str | None) -> str:
    return "-" if cell is None else cell if isinstance(cell, str) else cell.text()
