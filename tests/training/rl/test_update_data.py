"""Plans of an update: every decision is used equally, experts belong to their rollouts, and all survives a save."""

import numpy as np
import pytest

from syvla.training.rl.update_data import UpdateData, plan_experts, plan_rollouts, sample_seeds


@pytest.mark.parametrize(("decisions", "samples", "passes", "world"), [(10, 4, 6, 1), (7, 3, 8, 2), (3, 8, 2, 1)])
def test_every_decision_comes_equally_often(decisions, samples, passes, world):
    plan = plan_rollouts(decisions, samples, passes, world, np.random.default_rng(0))
    assert plan.shape == (passes, world, samples)
    counts = np.bincount(plan.ravel(), minlength=decisions)
    assert counts.max() - counts.min() <= 1


def test_experts_are_neighbors_of_their_rollouts_in_turn():
    neighbors = np.array([[10, 11, -1], [20, 21, 22], [30, -1, -1]])
    plan = np.array([[[0, 1]], [[2, 0]]])
    rows, experts = plan_experts(plan, neighbors, 3, np.random.default_rng(0))
    for number in range(2):
        for slot in range(3):
            assert rows[experts[number, 0, slot]] in neighbors[plan[number, 0, slot % 2]]
    assert (rows >= 0).all()
    assert len(set(rows)) == len(rows)
    rows, experts = plan_experts(plan, neighbors, 0, np.random.default_rng(0))
    assert (len(rows), experts.shape) == (0, (2, 1, 0))


def test_seeds_depend_on_sample_update_kind_and_run():
    base = sample_seeds(0, 1, 0, np.arange(3))
    assert (base >= 0).all()
    assert (sample_seeds(0, 1, 0, np.array([2]))[0], base.dtype) == (base[2], np.int64)
    others = [sample_seeds(1, 1, 0, [0]), sample_seeds(0, 2, 0, [0]), sample_seeds(0, 1, 1, [0])]
    assert len({int(base[0]), int(base[1]), *(int(s[0]) for s in others)}) == 5


def test_an_update_survives_saving(tmp_path):
    rng = np.random.default_rng(0)
    floats = [rng.normal(size=5).astype(np.float32) for _ in range(3)]
    data = UpdateData(
        3,
        ["a", "b"],
        *floats,
        rng.integers(0, 2**62, 5),
        rng.normal(size=(5, 2)).astype(np.float32),
        np.arange(2),
        np.arange(2),
        np.ones(2, np.float32),
        np.ones((2, 2), np.float32),
        np.zeros((4, 1, 2), np.int64),
        np.zeros((4, 1, 0), np.int64),
        {"val/explained_variance": float("nan"), "x": 1.0},
        step=2,
    )
    data.save(tmp_path)
    loaded = UpdateData.load(tmp_path)
    for name, value in vars(data).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(value, getattr(loaded, name)), name
            assert value.dtype == getattr(loaded, name).dtype
        elif name != "metrics":
            assert value == getattr(loaded, name), name
    assert loaded.metrics["x"] == 1.0
