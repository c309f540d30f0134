"""Contrasts of arms over seeds, against values worked out by hand."""

import pytest

pytest.importorskip("scipy", reason="SciPy is not installed")

from benchmarks.rl_ablation_statistics import contrasts, difference


def test_a_difference_is_paired_by_seed():
    """Differences 0.2, 0.1, 0.3 of seeds 1, 2, 3: mean 0.2, t = 0.2 / (0.1 / sqrt 3) = 3.464 with 2 degrees of freedom."""
    facts = difference({1: 0.7, 2: 0.6, 3: 0.9, 8: 0.1}, {3: 0.6, 2: 0.5, 1: 0.5, 9: 1.0})
    assert (facts["seeds"], facts["by_seed"]) == (3, [0.2, 0.1, 0.3])
    assert facts["mean"] == pytest.approx(0.2)
    assert facts["p_t"] == pytest.approx(0.0742, abs=1e-4)
    assert facts["p_permutation"] == pytest.approx(2 / 8), "of eight flips all-plus and all-minus are as far away"
    assert facts["ci95"] == pytest.approx([0.2 - 4.303 * 0.1 / 3**0.5, 0.2 + 4.303 * 0.1 / 3**0.5], abs=1e-3)
    assert 0 <= facts["power"]["power"] <= 1
    assert difference({1: 0.5}, {2: 0.5}) is None
    assert difference({1: 0.5}, {1: 0.5})["p_t"] is None


def test_holm_corrects_the_two_primary_contrasts_alone():
    """The smaller p counts twice; the larger one at least as much."""
    seeds = range(8)
    rates = {
        "similar": {seed: 0.7 + 0.01 * (seed % 3) for seed in seeds},
        "random": {seed: 0.6 + 0.01 * (seed % 2) for seed in seeds},
        "imitation": {seed: 0.69 + 0.02 * (seed % 4) for seed in seeds},
        "il": dict.fromkeys(seeds, 0.5),
    }
    found = contrasts(rates)
    first, second = (found["primary"][name] for name in ("similar - random", "similar - imitation"))
    assert first["p_permutation"] == pytest.approx(2 / 2**8)
    assert first["p_permutation_holm"] == pytest.approx(2 * first["p_permutation"])
    assert second["p_permutation_holm"] == pytest.approx(max(first["p_permutation_holm"], second["p_permutation"]))
    assert first["p_t_holm"] == pytest.approx(min(1, 2 * first["p_t"]))
    assert set(found["secondary"]) == {"similar - il"}
    assert "p_t_holm" not in found["secondary"]["similar - il"]
    assert contrasts({"similar": {0: 0.5}}) == {"primary": {}, "secondary": {}}
