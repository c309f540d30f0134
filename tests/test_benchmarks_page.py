"""Figures of the demo and of chunk ends, wherever pages give them, are those of the committed outcomes."""

import json
import re
from pathlib import Path

import pytest

from syvla.evaluation.closed_loop import evaluation_seeds
from syvla.evaluation.success_rate import SuccessRate

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def words(path):
    return " ".join((ROOT / path).read_text(encoding="utf-8").split())


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def table_after(text):
    """Cells of the rows of the first table after a text of the page."""
    lines = PAGE[PAGE.index(text) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    return rows[2:]


def percent(rate, digits):
    return " to ".join(f"{100 * bound:.{digits}f}" for bound in rate.interval) + "%"


@pytest.fixture(scope="module")
def checkpoint():
    """What was measured of the checkout's policy, which has the demo's recipe: successes by start."""
    found = json.loads((RESULTS / "tiny_checkpoint.json").read_text(encoding="utf-8"))
    return {outcome["seed"]: outcome["success"] for outcome in found["outcomes"]}


def test_the_demos_recipe_on_its_own_starts_and_on_all(checkpoint):
    own = SuccessRate.of(checkpoint[seed] for seed in evaluation_seeds(0, 40))
    both = {"the demo's 40": own, "all": SuccessRate.of(checkpoint.values())}
    expected = [[name, f"{r.successes} / {r.episodes}", percent(r, 1)] for name, r in both.items()]
    assert table_after("`make demo` and `make checkpoint` share one recipe") == expected
    rate = both["all"]
    assert f"| {rate.successes} / {rate.episodes} ({percent(rate, 0)}) |" in words("README.md")
    assert f"gave {rate.successes} of {rate.episodes} unseen starts" in words("docs/faq.md")


def test_five_seeds_of_the_demo():
    from benchmarks import demo_seeds

    runs = demo_seeds.load_runs(RESULTS / "demo_seeds.json")
    expected = [[row[1], row[2], row[3], row[5], row[6]] for row in demo_seeds.table(runs)]
    assert len(runs) == 5
    assert table_after("So the whole demo ran with five seeds") == expected
    found = demo_seeds.summary(runs, 1)
    before, after = found["before"], found["after"]
    every = after["successes_by_seed"]
    assert (
        f"| {before['successes']} / {before['episodes']} | {after['successes']} / {after['episodes']} "
        f"({min(every)} to {max(every)} of 40) |"
    ) in words("README.md")
    for name, text in (("processor_seconds", "A demo costs {} to {} processor"), ("seconds", "took {} to {} seconds")):
        seconds = found[f"{name}_by_seed"]
        assert text.format(min(seconds), max(seconds)) in words("docs/benchmarks.md")


def test_the_recipe_is_what_pages_say_of_it():
    import yaml

    from syvla.modeling_syvla import SyVLAConfig
    from syvla.training.demo import RECIPE, DemoSettings

    settings, recipe = DemoSettings(), yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    steps, batch = recipe["max_steps"], recipe["per_device_train_batch_size"]
    said = (
        f"one recipe: {settings.demonstrations} demonstrations of `{settings.task}`, {steps} steps of {batch} samples"
    )
    assert said in words("docs/benchmarks.md")
    assert f"from random weights, {steps} steps" in words("README.md")
    assert settings.episodes == 40
    assert "augmentation" not in recipe, "off, as the page says"
    assert SyVLAConfig.tiny().chunk_end == "hold"
    made = json.loads((RESULTS / "tiny_checkpoint.json").read_text(encoding="utf-8"))
    assert (made["demonstrations"], made["optimizer_steps"]) == (settings.demonstrations, steps)


def test_the_table_of_chunk_ends():
    pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")
    from benchmarks import chunk_end

    shown = table_after("What belongs into a chunk's steps")
    shown = [[row[0], row[1], re.match(r'`"(\w+)"`', row[2])[1], *row[3:]] for row in shown]
    assert shown == chunk_end.table(chunk_end.load_runs(RESULTS / "chunk_end.json"))
