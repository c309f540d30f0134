"""The chunk-end comparison: its intervals, its committed outcomes, and the small policy's world."""

import math

import numpy as np
import pytest
import torch

from benchmarks.chunk_end import RESULTS, difference, load_runs, table
from benchmarks.chunk_end_policy import ACTION_DIM, STATE_DIM, Arm, Robot, make_chunks, make_model, observation, train
from benchmarks.chunk_end_policy import Statistics as ChunkStatistics
from syvla.evaluation.environments import make_expert


def test_the_interval_is_students():
    mean, half, detectable = difference([(3.0, 1.0), (4.0, 1.0), (5.0, 1.0)])
    assert mean == pytest.approx(3.0)
    assert half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)  # t(0.975, 2), standard deviation 1
    assert detectable == pytest.approx((4.3027 + 1.0607) / math.sqrt(3), rel=1e-4)  # and t(0.8, 2)
    assert math.isnan(difference([(1.0, 0.0)])[1]), "a single seed has no interval"


def test_the_table_follows_from_the_committed_outcomes():
    runs = load_runs(RESULTS / "chunk_end.json")
    rows = {(row[0], row[1], row[2]): row for row in table(runs)}
    assert {arm for _, _, arm in rows} >= {"noise", "hold", "masked"}
    for (task, chunk, arm), row in rows.items():
        own = [r for r in runs if (r["task"], str(r["chunk_size"]), r["arm"]) == (task, chunk, arm)]
        assert int(row[3]) == len(own) >= 3
        won = sum(e["success"] for r in own for e in r["episodes"]["half"])
        assert row[7].startswith(f"{won}/{sum(len(r['episodes']['half']) for r in own)} ")


@pytest.mark.parametrize("task", ["place", "lift"])
def test_the_expert_succeeds_through_the_policys_actions(task):
    env = Robot(task, 40.0).make()
    expert = make_expert(env)
    for seed in (0, 1, 2):
        env.reset(seed=seed)
        expert.reset()
        arm, done = Arm(env), False
        while not done:
            assert arm.state().shape == (STATE_DIM,)
            action = arm.pose(expert.act()[0])
            assert action.shape == (ACTION_DIM,)
            _, _, terminated, truncated, info = env.step(arm.joint_targets(action))
            done = terminated or truncated
        assert info["success"]
        tool_y = arm.state()[1]
        assert tool_y < 0.05, "the working arm is always the right one"


def test_arms_start_and_train_alike():
    rng = np.random.default_rng(0)
    episodes = [(rng.normal(size=(6, STATE_DIM)), rng.normal(size=(6, ACTION_DIM))) for _ in range(3)]
    chunks = make_chunks(episodes, ChunkStatistics.of(episodes), 4)
    assert chunks.real.sum(1).tolist() == [4, 4, 4, 3, 2, 1] * 3
    full = chunks.rows(chunks.real.all(1))  # without padding the arms are the same
    found = []
    for arm in ("noise", "hold", "masked"):
        model = make_model(arm, 4, seed=3)
        train(model, full, steps=30, batch=4, seed=1)
        found.append(model.sample_actions(*observation(model, full.states), noise=torch.ones(9, 4, ACTION_DIM)))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
