"""Zero against drawn noise on shared starts: tests by hand, and that no condition is run twice."""

import json

import numpy as np
import pytest

from benchmarks import initial_noise
from benchmarks.initial_noise import DrawnAnew, mcnemar, paired, summarize


def test_mcnemar_counts_the_starts_that_differ():
    """Five gained and one lost: 2 * (1 + 6) / 2**6."""
    found = mcnemar("sssssfsf", "fffffssf")
    assert (found["gained"], found["lost"]) == (5, 1)
    assert found["p"] == pytest.approx(14 / 64)
    assert mcnemar("sf", "sf")["p"] == 1.0


def test_the_difference_is_of_zero_and_the_mean_draw():
    """Per start 1 - 1/2, 0 - 1/2, 1 - 0, 0 - 0; mean 1/4."""
    found = paired("sfsf", ["ssff", "ffff"])
    assert found["difference"] == pytest.approx(0.25)
    low, high = found["bootstrap95"]
    assert low < 0.25 < high


def test_rearranging_gives_the_exact_p():
    """One draw: on ten starts that differ, all in favor of zero, two of 2**10 arrangements are as far away."""
    found = paired("s" * 10, ["f" * 10])
    assert found["p"] == pytest.approx(2 / 2**10, abs=1.5e-3)
    assert paired("s" * 10, ["s" * 10])["p"] == 1.0


def test_draws_differ_and_the_first_is_the_evaluation_s_own():
    asked = []

    class Policy:
        name, chunk_size = "p", 8

        def predict(self, observations, instructions, *, seeds):
            asked.append(list(seeds))

    for draw in (0, 1, 1, 2):
        DrawnAnew(Policy(), draw).predict([], [], seeds=[5, 6])
    assert asked[0] == [5, 6]
    assert asked[1] == asked[2] != asked[3]
    assert len({seed for seeds in asked for seed in seeds}) == 6


def test_a_condition_is_measured_once(monkeypatch, tmp_path, capsys):
    done = []

    def measure(options, condition):
        done.append(condition)
        return "sfss" if condition == "zero" else "sfsf"

    monkeypatch.setattr(initial_noise, "measure", measure)
    words = ["--episodes", "4", "--draws", "2", "--results", str(tmp_path)]
    assert initial_noise.main(words) == 0
    assert initial_noise.main(words) == 0
    assert done == ["zero", "draw 0", "draw 1"]
    content = json.loads((tmp_path / "initial_noise.json").read_text())["lift, without thoughts"]
    assert content["outcomes"]["zero"] == "sfss"
    assert content["rates"]["draw 1"]["successes"] == 2
    assert content["zero_minus_drawn"]["difference"] == pytest.approx(0.25)
    assert content["drawn_mean"] == 0.5
    assert initial_noise.main([*words, "--episodes", "5"]) == 1
    assert "has other settings" in capsys.readouterr().err


def test_without_draws_there_is_nothing_to_compare():
    assert set(summarize({"zero": "sf"})) == {"rates"}
    assert np.isclose(summarize({"zero": "sf"})["rates"]["zero"]["wilson95"][0], 0.0945, atol=1e-3)
