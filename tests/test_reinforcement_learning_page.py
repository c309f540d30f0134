"""Every figure of docs/reinforcement_learning.md is that of a committed JSON, which the page names, or a setting's default."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from syvla.training.rl.config import SyVLAPPOConfig

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "reinforcement_learning.md").read_text(encoding="utf-8")

NAMES = {
    "il": "imitation learning, the start of all",
    "similar": "similar expert samples, advantage +1 (the method)",
    "random": "random expert samples",
    "none": "no expert samples",
    "gae": "similar, advantage by GAE",
    "imitation": "control: imitation on the same similar samples, no RL",
}


def results(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def section(title):
    """The page's text from a heading, or from its beginning, to the next heading."""
    text = PAGE if title is None else PAGE.split(f"\n## {title}\n")[1]
    return text.split("\n## ")[0]


def rows(text):
    """Cells of all table rows but headings and rules."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in cells] for cells in lines if not set("".join(cells)) <= set("- |")][1:]


def percent(part):
    """Wilson's interval in whole percent, by its formula."""
    successes, episodes, z = part["successes"], part["episodes"], 1.959963984540054
    share, scale = successes / episodes, 1 + z * z / episodes
    middle = (share + z * z / (2 * episodes)) / scale
    half = z * (share * (1 - share) / episodes + z * z / (4 * episodes**2)) ** 0.5 / scale
    return f"{100 * (middle - half):.0f} to {100 * (middle + half):.0f}%"


def test_the_run_over_http():
    found = results("rl_http_run")
    assert "`benchmarks/results/rl_http_run.json`" in section(None)
    parts = {"imitation learning": found["before"]}
    parts |= {f"after RL, seed {run['seed']}": run["after"] for run in found["runs"]}
    expected = [[name, f"{part['successes']} / {part['episodes']}", percent(part)] for name, part in parts.items()]
    assert rows(section(None)) == expected
    settings = found["settings"]
    said = f"after {settings['max_rl_updates']} updates of {settings['rollouts_per_update']} rollouts over HTTP"
    assert said in " ".join(section(None).split())


def test_the_ablation():
    found, text = results("rl_ablation"), section("What each part is worth")
    assert "`benchmarks/results/rl_ablation.json`" in text
    expected = []
    for arm, name in NAMES.items():
        row, paper = found["arms"][arm], found["paper"]["success"][arm]
        low, high = row["ci95"]
        expected.append(
            [
                name,
                f"{row['mean']:.2f}",
                ", ".join(f"{rate:.2f}" for rate in row["success"]),
                f"[{low:.2f}, {high:.2f}]" + (" (Wilson)" if arm == "il" else ""),
                "not measured" if paper is None else f"{paper:.2f}",
            ]
        )
    assert rows(text) == expected
    contrasts = (found["minus_il"]["similar"], found["similar_minus"]["random"], found["similar_minus"]["imitation"])
    numbers = [f"{number:+.2f}" for one in contrasts for number in (one["mean"], *one["ci95"])]
    prose = " ".join(line for line in text.splitlines() if not line.startswith("|"))
    assert re.findall(r"[+-]\d\.\d\d", prose) == numbers
    settings = found["settings"]
    said = (
        f"takes {settings['updates']} updates of {settings['rollouts']} rollouts and {settings['steps']} gradient steps"
    )
    assert said in prose
    assert f"{len(settings['seeds'])} seeds, {settings['episodes']} starts each" in prose


def test_zero_against_drawn_noise():
    found, text = results("initial_noise")["lift, without thoughts"], section("Where the flow begins")
    assert "`benchmarks/results/initial_noise.json`" in text
    expected = []
    for name, letters in found["outcomes"].items():
        part = {"successes": letters.count("s"), "episodes": len(letters)}
        row = name if name == "zero" else f"drawn noise, {name}"
        expected.append([row, f"{part['successes']} / {part['episodes']}", percent(part)])
    assert rows(text) == expected
    zero, *draws = ([float(letter == "s") for letter in own] for own in found["outcomes"].values())
    difference = sum(zero) / len(zero) - sum(map(sum, draws)) / len(zero) / len(draws)
    said = " ".join(text.split())
    assert f"zero is {100 * difference:+.1f} points above the mean draw" in said
    low, high = found["zero_minus_drawn"]["bootstrap95"]
    assert f"(95% bootstrap {100 * low:+.1f} to {100 * high:+.1f})" in said
    worst = max(one["p"] for one in found["mcnemar"].values())
    assert f"McNemar's exact test against each draw: p at most {worst:.5f}" in said


def test_the_memory_table():
    plain, divided = results("rl_memory_ddp"), results("rl_memory_zero2")
    text = section("Eight GPUs")
    assert "`benchmarks/results/rl_memory_ddp.json`" in text
    assert "`benchmarks/results/rl_memory_zero2.json`" in text
    first = text.split("|\n|---|")[0]
    assert "parameters" in first
    for (name, count), line in zip(plain["parameters"].items(), rows(text), strict=False):
        sums = [
            sum(size for part, size in found["GPUs 1 to 7, each"].items() if part.startswith(f"{name}:"))
            for found in (plain, divided)
        ]
        assert line[1] == f"{count:,}"
        assert [float(cell) for cell in line[3:]] == pytest.approx(sums, abs=0.051)
    totals = [found["GPUs 1 to 7, each"]["total_gib"] for found in (plain, divided)]
    assert [float(cell) for cell in rows(text)[-1][2:]] == pytest.approx(
        [plain["GPU 0"]["total_gib"], *totals], abs=0.051
    )


def test_defaults_are_those_of_the_settings():
    defaults = {field.name: field.default for field in fields(SyVLAPPOConfig)}
    told = re.findall(r"`--(\w+)`[^()`]{0,60}\(([\d.]+)\)", " ".join(PAGE.split()))
    assert {name for name, _ in told} >= {"takeover_failed_decisions", "advantage_quantile", "indicator_dropout"}
    for name, number in told:
        assert defaults[name] == pytest.approx(float(number)), name
