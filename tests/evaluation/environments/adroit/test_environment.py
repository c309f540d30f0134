"""Adroit: the package's own episodes, actions and success; joints by name; what one evaluation cannot hold."""

import numpy as np
import pytest
from simulators import check_a_reset_forgets, make_or_skip

pytest.importorskip("gymnasium_robotics")
from gymnasium_robotics.envs import adroit_hand

from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.environments import EVALUATION_SEED_OFFSET

PACKAGED = {
    "door": (adroit_hand.AdroitHandDoorEnv, 28),
    "hammer": (adroit_hand.AdroitHandHammerEnv, 26),
    "pen": (adroit_hand.AdroitHandPenEnv, 24),
    "relocate": (adroit_hand.AdroitHandRelocateEnv, 30),
}


@pytest.fixture(scope="module", params=PACKAGED)
def env(request):
    env = make_or_skip("adroit", request.param, image_size=24)
    yield env
    env.close()


@pytest.fixture
def door():
    env = make_or_skip("adroit", "door", image_size=24)
    yield env
    env.close()


def test_an_episode_is_the_packages_own(env):
    make, joints = PACKAGED[env.task]
    assert env.action_space.shape == (joints,)
    packaged = make()
    packaged.reset(seed=EVALUATION_SEED_OFFSET + 3)
    observation, info = env.reset(seed=EVALUATION_SEED_OFFSET + 3)
    assert info["instruction"]
    for part in ("body_pos", "body_quat", "site_pos"):
        assert np.array_equal(getattr(env.model, part), getattr(packaged.model, part))
    for step in range(20):
        action = np.sin(0.3 * step + np.arange(joints)).astype(np.float32)
        theirs, _, _, _, their_info = packaged.step(action)
        observation, reward, terminated, _, info = env.step(action)
        assert np.array_equal(env.data.qpos, packaged.data.qpos)
        assert terminated == info["success"] == bool(their_info["success"]) == bool(reward)
    own = theirs[:joints] if env.task != "door" else np.append(env.data.qpos[0], theirs[: joints - 1])
    assert np.allclose(observation["state"], own, atol=1e-6), "the package leaves out the door arm's slide"
    packaged.close()


def test_joints_go_where_the_action_says(env):
    env.reset(seed=0)
    assert env.state_names == env.action_names
    assert len(env.state_names) == len(set(env.state_names)) == env.action_space.shape[0]
    assert env.state_names[-1] == "THJ0"
    wrist = env.state_names.index("WRJ0")
    for sign in (1.0, -1.0):
        action = np.zeros(len(env.state_names))
        action[wrist] = sign
        for _ in range(60):
            env.step(action)
        low, high = env.model.actuator_ctrlrange[wrist]
        assert env.state[wrist] == pytest.approx(high if sign > 0 else low, abs=0.1 * (high - low))


def test_a_reset_forgets_everything(env):
    check_a_reset_forgets(env, seed=EVALUATION_SEED_OFFSET)


def open_the_door(env):
    state = env._simulator.get_env_state()
    state["qpos"][env.model.joint("door_hinge").qposadr[0]] = 1.45
    env._simulator.set_env_state(state)
    return env.step(np.zeros(28))


def test_success_is_an_open_door(door):
    door.reset(seed=0)
    assert not door.step(np.zeros(28))[2]
    _, reward, terminated, _, info = open_the_door(door)
    assert (reward, terminated, info["success"]) == (1.0, True, True)
    assert not door.reset(seed=0)[1]["success"]


def test_the_goal_may_have_to_be_reached_for_longer():
    env = make_or_skip("adroit", "door", image_size=24, goal_steps=3)
    assert env.description["goal_steps"] == 3
    env.reset(seed=0)
    assert [open_the_door(env)[2] for _ in range(3)] == [False, False, True]
    env.close()
    with pytest.raises(ValueError, match="goal_steps: expected 1 to 200, the steps of an episode, got 0"):
        make_or_skip("adroit", "door", goal_steps=0)


def test_an_unstable_simulation_ends_the_episode_as_a_failure(door):
    door.reset(seed=0)
    door.data.qvel[:] = 1e12
    _, reward, terminated, truncated, info = door.step(np.zeros(28))
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)
    door.reset(seed=0)
    assert not door.step(np.zeros(28))[3]


def test_an_evaluation_of_one_task_runs_and_one_of_several_is_refused(door):
    options = {
        "episodes": 2,
        "progress": False,
        "environment_options": {"image_size": 8, "max_steps": 5, "look": "fast"},
    }
    result = evaluate_closed_loop("random", "adroit", "door", **options)
    assert (result.total.successes, result.total.episodes) == (0, 2)
    with pytest.raises(
        ValueError, match=r"got \['door', 'hammer', 'pen', 'relocate'\], whose arms have different joints"
    ):
        evaluate_closed_loop("random", "adroit", "all", **options)
