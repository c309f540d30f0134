"""Figures of docs/faq.md stand in the committed results, and what the page names exists."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = " ".join((ROOT / "docs" / "faq.md").read_text(encoding="utf-8").split())
RESULTS = ROOT / "evaluation" / "results"


@pytest.mark.parametrize(
    ("said", "table", "row", "column", "value"),
    [
        ("0.225 without", 4, "0%", 2, "0.225"),
        ("0.217 with the paper's mask", 4, "**5%**", 2, "0.217"),
        ("0.43 without", 4, "0%", 1, "0.43"),
        ("0.86 with it", 4, "**5%**", 1, "0.86"),
        ("0.39 with 5 queries", 5, "5", 1, "0.39"),
        ("0.78 with 15", 5, "15", 1, "0.78"),
        ("0.86 with 20", 5, "**20**", 1, "0.86"),
        ("0.87 with 30", 5, "30", 1, "0.87"),
    ],
)
def test_figures_of_the_tables(said, table, row, column, value):
    assert said in PAGE
    lines = (RESULTS / f"table_{table}_tiny.md").read_text(encoding="utf-8").splitlines()
    cells = next([cell.strip() for cell in line.split("|")[1:]] for line in lines if line.startswith(f"| {row} |"))
    assert cells[column].split()[0] == value


def test_figures_of_the_mixture():
    assert "at 27.9 with the mixture and at 9.4 without" in PAGE
    text = (RESULTS / "table_9_tiny.md").read_text(encoding="utf-8")
    ours = {
        name: float(value) for name, value in re.findall(r"^\| ([^|]+) \| ours[^|]*\| ([\d.]+)", text, re.MULTILINE)
    }
    assert (round(ours["**All**"], 1), round(ours["w/o Mixed Data"], 1)) == (27.9, 9.4)


def test_figures_of_the_checkpoint_and_the_parameters():
    assert "200 demonstrations of `lift` gave 176 of 200 unseen starts" in PAGE
    found = json.loads((ROOT / "benchmarks" / "results" / "tiny_checkpoint.json").read_text(encoding="utf-8"))
    assert (found["task"], found["demonstrations"], found["successes"], found["episodes"]) == ("lift", 200, 176, 200)
    assert sum(outcome["success"] for outcome in found["outcomes"]) == 176
    parameters = (
        4_441_810_830  # of `python -m syvla.modeling_syvla.parameters`, as docs/reinforcement_learning.md has it
    )
    assert f"{parameters:,}" in (ROOT / "docs" / "reinforcement_learning.md").read_text(encoding="utf-8")
    assert f"{parameters / 1e9:.2f} billion parameters, which are {2 * parameters / 1e9:.1f} GB" in PAGE
    assert f"({2 * parameters / 2**30:.1f} GiB)" in PAGE
    assert f"16 bytes a weight, {16 * parameters / 1e9:.0f} GB" in PAGE


def test_folders_and_formats_of_the_page_exist():
    from syvla.processing.conversion.formats import FORMATS

    assert (ROOT / "checkpoints" / "tabletop-lift").is_dir()
    assert len(FORMATS) == 4, "the page names ALOHA, robomimic, RLDS and RH20T"
    assert all(word in PAGE for word in ("ALOHA", "robomimic", "RLDS", "RH20T"))
