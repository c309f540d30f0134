"""The paper's numbers as printed, intervals over seeds, and tables that always name their scale."""

import re
from pathlib import Path
from statistics import stdev

import pytest

from syvla.evaluation.published_tables import (
    PAPER_TABLES,
    Cell,
    markdown_table,
    mean_and_interval,
    paper_table,
)

# Typed from the paper a second time, as lines of the printed tables.
SECOND_TRANSCRIPTION = {
    "1": """
        OpenVLA-OFT | 0.71 0.29 0.36 0.45 0.55 0.11 0.07 0.24
        GR00T | 0.71 0.21 0.21 0.38 0.64 0.07 0.00 0.24
        Wall-Oss | 0.50 0.18 0.14 0.27 0.14 0.04 0.00 0.06
        Pi0 (pretrained) | 0.93 0.39 0.57 0.63 0.78 0.29 0.36 0.48
        Pi0 (from scratch) | 0.64 0.21 0.29 0.38 0.50 0.14 0.14 0.26
        ChatVLA | 0.21 0.29 0.14 0.21 0.00 0.21 0.07 0.09
        SyVLA | 0.86 0.68 0.64 0.73 0.78 0.57 0.57 0.64""",
    "2": """
        Wall-Oss | 63.62 58.60 37.11 1146.56 36.57
        ChatVLA | 83.30 67.36 37.40 1435 39.90
        SyVLA | 80.01 67.70 35.78 1795 42.53""",
    "3": """
        w/o CoT | 0.79
        w/o Intention Decoupling | 0.43
        w/o RL | 0.71
        w/o Expert Dataset | 0.21
        w/o Similar Sample | 0.79
        w/ Standard Advantage | 0
        SyVLA (all) | 0.86""",
    "4": "0% | .43\n3% | .73\n5% | .86\n8% | .77\n10% | .86\n15% | .82\n20% | .64",
    "5": "5 | .39\n10 | .65\n15 | .78\n20 | .86\n25 | .83\n30 | .87",
    "6": "Fold Shirt | 0.035\nCalculating | 0.036\nWrapper | 0.070",
    "8": "Spatial | 87.7\nObject | 84.0\nGoal | 87.3\nLong | 65.7",
    "9": """
        All | 80.01 67.7 35.78 1795 42.53
        w/o Intention Decoupling | 63.62 71.76 38.67 1648.12 41.7
        w/o Mixed Data | 0.675 0.365 0.091 1255.34 22.25
        w/o Both | 0 0.0625 0.018 1237.83 18.71""",
    "10": "w/o Similar Retrieval | 0.56 0.571\nSyVLA | 0.68 0.643",
    "11": "Pi-RL | 0.714\nSimpleVLA-RL | 0.357\nSyVLA | 0.86",
}


@pytest.mark.parametrize("number", PAPER_TABLES)
def test_numbers_are_the_paper_s(number):
    table = PAPER_TABLES[number]
    for line in SECOND_TRANSCRIPTION[number].strip().splitlines():
        row, _, values = line.strip().partition(" | ")
        assert table.rows[row] == tuple(map(float, values.split())), row
    assert {len(values) for values in table.rows.values()} == {len(table.columns)}
    without_numbers = [row for row, values in table.rows.items() if set(values) == {None}]
    assert without_numbers == (["OpenVLA-OFT", "GR00T", "Pi0"] if number == "2" else [])
    assert len(SECOND_TRANSCRIPTION[number].strip().splitlines()) == len(table.rows) - len(without_numbers)


def test_averages_of_table_1_follow_from_its_tasks():
    """The paper rounds to two digits. ChatVLA's OoD tasks average 0.093, its in-domain tasks 0.213."""
    for row, values in PAPER_TABLES["1"].rows.items():
        for first in (0, 4):
            assert sum(values[first : first + 3]) / 3 == pytest.approx(values[first + 3], abs=0.0105), row


@pytest.mark.skipif(not Path("../shared/paper.txt").is_file(), reason="the paper's text is not at ../shared/paper.txt")
def test_rows_stand_in_the_paper_s_text_as_they_are():
    """Every printed line of numbers as one list; Tables 4 to 6, 8 and 11 are printed with our rows as columns."""
    text = re.sub(r"</?u>", "", Path("../shared/paper.txt").read_text(encoding="utf-8").replace(",", ""))
    printed = [[float(x) for x in re.findall(r"(?<![\w.])\d*\.?\d+(?![\w.%])", line)] for line in text.splitlines()]
    for table in PAPER_TABLES.values():
        if table.number == "3":
            lines = [re.sub(r"\s", "", line) for line in text.splitlines()]
            for row, (value,) in table.rows.items():
                assert f"{row}{value:.2f}".replace(" ", "") in lines, row
        elif len(table.columns) == 1:
            assert [value for (value,) in table.rows.values()] in printed, table.number
        else:
            for row, values in table.rows.items():
                assert set(values) == {None} or list(values) in printed, (table.number, row)


def test_an_unknown_table_lists_the_known_ones():
    with pytest.raises(ValueError, match="expected one of 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, got '12'"):
        paper_table("12")
    with pytest.raises(ValueError, match="Table 7 lists hyper-parameters"):
        paper_table("7")


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_an_interval_is_as_wide_as_the_printed_quantiles_say(freedom, quantile):
    """97.5% quantiles as printed in any table of Student's distribution, times the standard error of the mean."""
    values = [float(step % 3) for step in range(freedom + 1)]
    mean, interval = mean_and_interval(values)
    standard_error = stdev(values) / len(values) ** 0.5
    assert interval is not None
    assert (interval[1] - mean) / standard_error == pytest.approx(quantile, abs=5e-5)
    assert interval[1] - mean == pytest.approx(mean - interval[0])


def test_seeds_that_agree_have_no_interval_over_seeds():
    """One of no width would say that another seed gives the same for certain."""
    assert mean_and_interval([0.5, 0.5, 0.5]) == (0.5, None)
    assert Cell(*mean_and_interval([0.5, 0.5]), (0.4, 0.6), 2).text() == "0.500 (2 seeds) Wilson [0.400, 0.600]"


def test_interval_of_a_mean():
    mean, interval = mean_and_interval([0.5, 0.6, 0.7])
    assert mean == pytest.approx(0.6)
    assert interval == pytest.approx((0.6 - 4.3027 * 0.1 / 3**0.5, 0.6 + 4.3027 * 0.1 / 3**0.5), abs=1e-4)
    assert mean_and_interval([0.25]) == (0.25, None)
    with pytest.raises(ValueError, match="at least one seed"):
        mean_and_interval([])


def test_our_column_stands_beside_the_paper_s_with_its_scale():
    ours = {
        "5%": {"Success": Cell(0.5, (0.4, 0.6), (0.45, 0.55), 3)},
        "10%": {"Success": Cell(0.5, None, (0.45, 0.55), 1)},
        "20%": {"Success": "not run here"},
        "batch": {"Success": Cell(0.25)},
    }
    lines = markdown_table(PAPER_TABLES["4"], ours, "tiny", ["batch"]).splitlines()
    assert lines[0].startswith("## Table 4: Quantile")
    assert lines[2] == "|  | paper | ours (tiny) |"
    assert "| **5%** | 0.86 | 0.500 3 seeds [0.400, 0.600] Wilson [0.450, 0.550] |" in lines
    assert "| 10% | 0.86 | 0.500 (1 seed) Wilson [0.450, 0.550] |" in lines
    assert "| 20% | 0.64 | not run here |" in lines
    assert "| 0% | 0.43 | - |" in lines
    assert lines[-1] == "| batch | - | 0.250 |"


def test_in_a_wide_table_our_line_stands_below_the_paper_s_and_none_goes_without_scale():
    ours = {"w/o Both": {"DocVQA": Cell(1.5), "MME": Cell(700.0, (600.0, 800.0))}, "base": {"AI2D": Cell(25.0)}}
    lines = markdown_table(PAPER_TABLES["9"], ours, "tiny: CPU", ["base"]).splitlines()
    assert lines[2] == "|  |  | DocVQA | AI2D | MMMU | MME | HallBench |"
    assert lines[-3:] == [
        "| w/o Both | paper | 0 | 0.0625 | 0.018 | 1237.83 | 18.71 |",
        "| w/o Both | ours (tiny: CPU) | 1.500 | - | - | 700.0 seeds [600.0, 800.0] | - |",
        "| base | ours (tiny: CPU) | - | 25.0 | - | - | - |",
    ]
    with pytest.raises(ValueError, match="scale: expected"):
        markdown_table(PAPER_TABLES["4"], {}, "")
