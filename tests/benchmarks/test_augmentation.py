"""The augmentation comparison: arms that differ by the augmentation alone, and a table that follows from its outcomes."""

import numpy as np
import pytest

from benchmarks.augmentation import WORLDS, load_runs, rates, table
from benchmarks.augmentation_policy import VIEWS, demonstrations, make_model, observation_of, train
from benchmarks.reporting import RESULTS


def test_the_table_follows_from_the_committed_outcomes():
    runs = load_runs(RESULTS / "augmentation.json")
    rows = table(runs)
    assert {row[0] for row in rows} == {"none", "default"}
    assert {row[0] for row in rows} == {run["strength"] for run in runs}
    for strength, world, seeds, success, _ in rows:
        own = [run for run in runs if run["strength"] == strength]
        won = sum(e["success"] for run in own for e in run["episodes"][world])
        assert int(seeds) == len(own)
        assert success.startswith(f"{won}/{sum(len(run['episodes'][world]) for run in own)} ")
    for run in runs:
        seeds = [[e["seed"] for e in run["episodes"][world]] for world in WORLDS]
        assert all(own == seeds[0] for own in seeds), "every world has the same episodes"


def test_differences_are_paired_by_seed():
    def run(strength, seed, won):
        return {
            "strength": strength,
            "seed": seed,
            "episodes": {w: [{"success": k < won} for k in range(4)] for w in WORLDS},
        }

    runs = [run("none", 0, 1), run("none", 1, 2), run("default", 0, 3), run("default", 1, 4)]
    assert table(runs)[-1][-1] == "+50.0 +- 0.0"
    assert rates(runs, WORLDS[0]).successes == 10


def test_the_arms_see_the_same_samples_and_differ_by_the_augmentation():
    data = demonstrations("lift", 2)
    assert data.chunks.shape == (len(data.states), 8, 14)
    mean, std = data.statistics["action"]
    last = data.chunks[-1].numpy() * std + mean
    np.testing.assert_allclose(last, np.broadcast_to(last[0], last.shape), atol=1e-5)  # held beyond the end
    items = [{"images": {view: data.pictures[view][3] for view in VIEWS}, "state": data.states[3]}]
    _, seen = observation_of(make_model(0), items, data.statistics)
    np.testing.assert_allclose(
        seen.pixel_values[0, 0, :, 5, 7], data.pictures["center"][3, 5, 7] / 127.5 - 1, atol=1e-6
    )
    losses = {}
    for strength in ("none", "none again", "default"):
        model = make_model(0)
        losses[strength] = train(model, data, strength=strength.split()[0], steps=2, batch=4, seed=0)
        assert not model.training
    assert losses["none"] == losses["none again"]
    assert losses["none"] != losses["default"]
    assert losses["none"] == pytest.approx(losses["default"], rel=0.5)
