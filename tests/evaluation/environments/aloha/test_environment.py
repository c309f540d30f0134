"""ALOHA: gym-aloha's scenes, draws and rewards; experts that succeed where random actions and holding still fail."""

import numpy as np
import pytest
from simulators import make_or_skip, random_policy_succeeds, run_expert

pytest.importorskip("mujoco")
from syvla.evaluation.environments.aloha.environment import HOME, OBJECTS, insertion_reward, transfer_reward

LEFT, RIGHT = "vx300s_left/10_left_gripper_finger", "vx300s_right/10_right_gripper_finger"


@pytest.fixture(scope="module", params=["transfer_cube", "insertion"])
def env(request):
    env = make_or_skip("aloha", request.param)
    yield env
    env.close()


def test_the_expert_succeeds_and_random_actions_fail(env):
    for seed in (0, 1_000_000):
        info, thoughts, steps = run_expert(env, seed)
        assert info["success"]
        assert steps < 250
        assert len(thoughts) >= 4
        assert len(set(thoughts)) == len(thoughts), "the sub-tasks come once each, in order"
        assert not random_policy_succeeds(env, seed)


def test_holding_still_keeps_the_arms_where_they_are_and_fails(env):
    observation, _ = env.reset(seed=0)
    home = observation["state"]
    for _ in range(60):
        observation, reward, terminated, *_ = env.step(home)
        assert (reward, terminated, env.reward) == (0.0, False, 0)
    assert np.allclose(observation["state"], home, atol=0.03)


def test_state_and_action_are_the_same_fourteen_quantities(env):
    assert env.state_names == env.action_names
    assert env.state_names[6] == "left_gripper"
    assert env.state_names[7] == "right_waist"
    env.reset(seed=0)
    assert np.allclose(env.state.reshape(2, 7)[:, :6], HOME)
    target = env.state.copy()
    target[[0, 6, 13]] += [0.3, 0.8, 0.4]
    for _ in range(60):
        env.step(target)
    assert np.allclose(env.state, target, atol=0.05)


def test_objects_are_drawn_from_gym_alohas_ranges(env):
    drawn = {body: [] for body in OBJECTS[env.task]}
    for seed in range(30):
        env.reset(seed=seed)
        for body, places in drawn.items():
            places.append(env.data.body(body).xpos[:2].copy())
    for body, ranges in OBJECTS[env.task].items():
        for values, (low, high) in zip(np.array(drawn[body]).T, ranges, strict=True):
            assert low <= values.min() < values.max() <= high
            assert values.max() - values.min() > 0.7 * (high - low)


def test_rewards_count_as_in_gym_aloha():
    def touching(*pairs):
        return {frozenset(pair) for pair in pairs}

    table = ("red_box", "table")
    right, left = ("red_box", RIGHT), (LEFT, "red_box")
    assert [
        transfer_reward(touching(*pairs)) for pairs in ([table], [table, right], [right], [table, left], [left])
    ] == [
        0,
        1,
        2,
        3,
        4,
    ]
    held = [("red_peg", RIGHT), ("socket-2", LEFT)]
    assert insertion_reward(touching(held[0])) == 0, "both have to be held"
    assert insertion_reward(touching(*held, ("red_peg", "table"))) == 1
    assert insertion_reward(touching(*held)) == 2
    assert insertion_reward(touching(*held, ("red_peg", "socket-1"))) == 3
    assert insertion_reward(touching(*held, ("red_peg", "socket-1"), ("socket-1", "table"))) == 1
    assert insertion_reward(touching(("red_peg", "pin"))) == 4


def test_an_unstable_simulation_ends_the_episode_as_a_failure(env):
    env.reset(seed=0)
    env.data.qvel[:] = 1e12
    _, reward, terminated, truncated, info = env.step(env.state)
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)
    _, _, _, truncated, _ = (env.reset(seed=0), env.step(env.state))[1]
    assert not truncated
