"""Contrasts, tests, corrections, intervals and power on data whose answers are known; figures from the JSON alone."""

import json
from itertools import product

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

from scipy.stats import nct, t, ttest_1samp

from benchmarks.decoupling_study_closed_loop import SPLITS
from benchmarks.decoupling_study_plan import ARMS
from benchmarks.decoupling_study_report import load, maps, remake, save
from benchmarks.decoupling_study_statistics import (
    PRIMARY,
    analyze,
    bootstrap_interval,
    contrast,
    flip_test,
    holm,
    power,
    t_interval,
)


def fake_run(arm, seed, in_domain, ood, states=10):
    rng = np.random.default_rng([seed, sum(map(ord, arm))])
    shares = rng.dirichlet(np.ones(states))
    probe = {"each": rng.random(states).round(3).tolist()}
    return {
        "arm": arm,
        "seed": seed,
        **{
            split: {"outcomes": outcomes, "steps": [3] * len(outcomes)}
            for split, outcomes in zip(SPLITS, (in_domain, ood), strict=True)
        },
        "mechanism": {
            "masks": {"share": shares.tolist()},
            "attention": shares[::-1].tolist(),
            "probes": dict.fromkeys(("place", "name", "number"), probe),
        },
    }


def test_flips_are_counted_exactly():
    assert flip_test(np.full(10, 0.1)) == 2 / 1024
    assert flip_test(np.arange(1.0, 6.0)) == 2 / 32
    assert flip_test(np.array([1.0, -1.0, 2.0, -2.0])) == 1.0
    # 3 of 4 seeds by hand: |sum| of +-1 +-2 +-3 +-4 is at least 8 for 8, 10 and their negatives
    differences = np.array([-1.0, 2.0, 3.0, 4.0])
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=4)]
    assert flip_test(differences) == np.mean([value >= 8 for value in sums]) == 4 / 16


def test_many_seeds_are_sampled_and_agree_with_a_t_test():
    values = np.random.default_rng(0).normal(0.5, 1, 30)
    assert flip_test(values) == pytest.approx(ttest_1samp(values, 0).pvalue, abs=0.01)


def test_the_test_keeps_its_level():
    rng = np.random.default_rng(1)
    p_values = np.array([flip_test(rng.standard_normal(8)) for _ in range(600)])
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=3 * (0.05 * 0.95 / 600) ** 0.5)


def test_holm_as_in_the_textbook():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.5}) == pytest.approx({"a": 1.0, "b": 1.0})
    assert holm({}) == {}


def test_intervals():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    half = t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    assert t_interval(values) == pytest.approx((2.5 - half, 2.5 + half))
    rng = np.random.default_rng(0)
    by_seed, by_start = rng.standard_normal((30, 1)), rng.standard_normal((1, 300))
    either = rng.standard_normal((30, 300))
    # One kind of spread alone has the width of its own mean. Where both are drawn, plain noise has three times its variance.
    for differences, expected in (
        (by_seed + np.zeros((30, 300)), by_seed.std() / 30**0.5),
        (by_start + np.zeros((30, 300)), by_start.std() / 300**0.5),
        (either, (3 / 9000) ** 0.5),
    ):
        low, high = bootstrap_interval(differences)
        assert low < differences.mean() < high
        assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.12)
    assert bootstrap_interval(np.full((4, 5), 0.25)) == (0.25, 0.25)


def test_power_is_that_of_a_t_test_and_the_level_where_there_is_nothing():
    for spread, seeds in ((0.1, 10), (0.15, 10), (0.2, 8)):
        edge, shift = t.ppf(0.975, seeds - 1), 0.1 / spread * seeds**0.5
        exact = nct.sf(edge, seeds - 1, shift) + nct.cdf(-edge, seeds - 1, shift)
        assert power(spread, seeds) == pytest.approx(exact, abs=0.05)
    assert power(0.1, 10, difference=0.0) == pytest.approx(0.05, abs=0.015)
    assert power(0.1, 10, level=0.05 / 3) < power(0.1, 10)
    assert power(0.1, 4) == 0.0, "16 flips never reach 0.05"


def test_contrasts_are_paired_by_seed_and_start():
    runs = [
        fake_run("weakest", 0, "sst", "tt"),
        fake_run("weakest", 1, "sss", "st"),
        fake_run("off", 1, "tst", "wt"),
        fake_run("off", 0, "tst", "st"),
        fake_run("off", 2, "sss", "ss"),  # no partner
    ]
    expected = [[1, 0, 0, -1, 0], [1, 0, 1, 1, 0]]
    weights = PRIMARY["decoupling on - off, with thoughts"]
    assert contrast(runs, weights).tolist() == expected
    assert contrast(runs, weights, ["ood"]).tolist() == [row[3:] for row in expected]


def study(effect):
    """Ten seeds in which the mask of the weakest has an effect with thoughts alone, of `effect` successes out of 40."""
    runs = []
    for seed in range(10):
        base = 8 + seed % 3
        for arm in ("weakest", "off", "silent_weakest", "silent_off", "random"):
            won = base + (effect if arm == "weakest" else 0)
            outcomes = "s" * won + "w" * (20 - won)
            runs.append(fake_run(arm, seed, outcomes, outcomes))
    return runs


def test_an_effect_is_found_and_none_is_not():
    found = analyze(study(6))
    for name in PRIMARY:
        assert found["primary"][name]["mean"] == pytest.approx(0.3)
        assert found["primary"][name]["p"] == 2 / 1024
        assert found["primary"][name]["p_holm"] == pytest.approx(6 / 1024)
        assert found["by_split"][name]["ood"]["mean"] == pytest.approx(0.3)
    assert found["secondary"]["decoupling on - off, without thoughts"]["p"] == 1.0
    assert found["arms"]["off"]["in_domain"]["mean"] == pytest.approx(np.mean([8 + s % 3 for s in range(10)]) / 20)
    nothing = analyze(study(0))
    assert all(own["p_holm"] == 1.0 and own["mean"] == 0 for own in nothing["primary"].values())


def test_tables_and_figures_are_remade_from_the_json(tmp_path, capsys):
    from matplotlib.image import imread

    path = tmp_path / "study.json"
    save(path, {"recipe": {"train_steps": 5}}, [*study(6), fake_run("queries_5", 0, "s" * 20, "t" * 20, states=5)])
    assert len(json.loads(path.read_text())["runs"]) == 51
    assert load(path)["recipe"] == {"train_steps": 5}
    remake(path)
    printed = capsys.readouterr().out
    assert "thoughts, decoupling" in printed
    assert "+30.0" in printed
    assert f"{ARMS['queries_5'].label}              1      100.0%" in printed
    pictures = {kind: (tmp_path / f"study_{kind}.png") for kind in ("success", "maps")}
    first = {kind: imread(file) for kind, file in pictures.items()}
    assert all(picture.shape[0] > 200 for picture in first.values())
    for file in pictures.values():
        file.unlink()
    remake(path)
    for kind, file in pictures.items():
        assert (imread(file) == first[kind]).all(), "the same figure from the same outcomes"
    save(path, {}, study(1))
    remake(path)
    assert imread(pictures["success"]).shape != first["success"].shape, "one arm fewer"


def test_maps_have_a_row_for_each_seed():
    found = maps(study(0), "random")
    assert {values.shape for values in found.values()} == {(10, 10)}
    np.testing.assert_allclose(found["share of masks"][:, ::-1], found["share of attention"])
