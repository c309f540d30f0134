"""What every back-end on another project's simulator offers: the protocol, checked actions, pictures drawn on demand."""

import copy
import pickle

import numpy as np
import pytest
from simulators import check_a_reset_forgets, make_or_skip

from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.environments import ENVIRONMENTS, RobotEnvironment, make_environment
from syvla.evaluation.environments.simulator import check_task

TASKS = {"metaworld": "push-v3", "aloha": "transfer_cube", "adroit": "relocate"}
SIZE = 24


@pytest.fixture(scope="module", params=TASKS)
def env(request):
    env = make_or_skip(request.param, TASKS[request.param], image_size=SIZE)
    yield env
    env.close()


def backend_of(env):
    return env.embodiment.partition("_")[0]  # "adroit" of "adroit_relocate", whose joints are this task's alone


def wave(env, step):
    """Some action that moves the robot."""
    middle = (env.action_space.low + env.action_space.high) / 2
    return middle + 0.3 * np.sin(step + np.arange(len(middle))) * (env.action_space.high - middle)


def test_it_is_a_robot_environment(env):
    assert isinstance(env, RobotEnvironment)
    assert set(env.view_cameras.values()) <= set(env.cameras)
    assert len(env.action_names) == len(env.max_step_motion) == env.action_space.shape[0]
    observation, info = env.reset(seed=0)
    drawn = {"images": dict(observation["images"]), "state": observation["state"]}
    assert env.observation_space.contains(drawn)
    assert info == {"instruction": env.instruction, "success": False, "task": env.task, "seed": 0}
    assert all(len(np.unique(picture)) > 20 for picture in drawn["images"].values()), "the pictures show something"


def test_a_seed_gives_the_same_episode_and_another_seed_another(env):
    def episode(seed):
        states = [env.reset(seed=seed)[0]["state"], *(env.step(wave(env, step))[0]["state"] for step in range(5))]
        scenery = (env.model.body_pos.ravel(), env.model.body_quat.ravel(), env.model.site_pos.ravel())
        return np.array(states), np.concatenate([env.data.qpos, *scenery])

    first, again, other = episode(3), episode(3), episode(4)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.allclose(first[1], other[1])


def test_a_reset_forgets_everything(env):
    check_a_reset_forgets(env, seed=3)


def test_pictures_looked_at_later_show_the_step_they_belong_to(env):
    observation, _ = env.reset(seed=1)
    seen_at_once = dict(env.reset(seed=1)[0]["images"])
    observations = [env.reset(seed=1)[0]]
    for step in range(6):
        observations.append(env.step(wave(env, step))[0])
    live = {camera: env.render_camera(camera, SIZE, SIZE) for camera in env.cameras}
    for camera in env.cameras:
        assert np.array_equal(observations[0]["images"][camera], seen_at_once[camera])
        assert np.array_equal(observations[-1]["images"][camera], live[camera])
        assert not np.array_equal(observations[0]["images"][camera], live[camera])
    with pytest.raises(RuntimeError, match="earlier episode"):
        observation["images"][env.cameras[0]]


def test_copied_and_pickled_pictures_are_plain_arrays(env):
    images = env.reset(seed=1)[0]["images"]
    for copied in (pickle.loads(pickle.dumps(images)), copy.deepcopy(images)):
        assert type(copied) is dict
        assert all(np.array_equal(copied[camera], images[camera]) for camera in env.cameras)
    with pytest.raises(KeyError):
        images["no_such_camera"]


def test_episodes_are_cut_at_the_limit(env):
    short = make_environment(backend_of(env), env.task, max_steps=3)
    short.reset(seed=0)
    ends = [short.step(wave(short, step))[2:4] for step in range(3)]
    short.close()
    assert ends == [(False, False), (False, False), (False, True)]


def test_bad_input_is_named(env):
    env.reset(seed=0)
    size = env.action_space.shape[0]
    with pytest.raises(ValueError, match=rf"action: expected shape \({size},\) = {env.action_names[0]}"):
        env.step(np.zeros(size + 1))
    broken = np.zeros(size)
    broken[1] = np.nan
    with pytest.raises(ValueError, match=f"expected finite values.*{env.action_names[1]}"):
        env.step(broken)
    with pytest.raises(ValueError, match="options: unknown"):
        env.reset(seed=0, options={"weather": "rain"})
    with pytest.raises(ValueError, match="unknown arguments"):
        make_environment(backend_of(env), env.task, color="red")
    fresh = make_environment(backend_of(env), env.task)
    for too_early in (lambda: fresh.step(np.zeros(size)), lambda: fresh.render()):
        with pytest.raises(RuntimeError, match="before reset"):
            too_early()
    fresh.close()


@pytest.mark.parametrize("name", [name for name in ENVIRONMENTS if name not in ("tabletop", "reach")])  # of the tests
def test_an_unknown_task_lists_the_known_ones(name):
    known = (
        make_or_skip(name, TASKS[name]).tasks
        if name in TASKS
        else ("libero_spatial_0", "libero_90", "libero_goal_swap")
    )
    try:
        with pytest.raises(ValueError, match=r"task: expected one of") as caught:
            make_environment(name, "fold_laundry")
    except ImportError as error:
        pytest.skip(str(error))
    assert all(task in str(caught.value) for task in known)


def test_a_task_that_is_nearly_right_is_named_and_many_are_not_listed():
    tasks = tuple(f"libero_goal_{number}" for number in range(100))
    with pytest.raises(ValueError, match=r"did you mean libero_goal") as caught:
        check_task("libero_gaol", tasks, ["libero_goal"])
    assert "100 tasks from 'libero_goal_0' to 'libero_goal_99', or of the groups ['libero_goal', 'all']" in str(
        caught.value
    )
    assert len(str(caught.value)) < 300


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TASKS if ENVIRONMENTS[name].expert])
def test_evaluation_reports_the_experts_success_and_random_failure(name):
    make_or_skip(name, TASKS[name]).close()
    expert = evaluate_closed_loop("expert", name, TASKS[name], episodes=2, workers=2, progress=False)
    assert (expert.total.successes, expert.total.episodes) == (2, 2)
    random = evaluate_closed_loop("random", name, TASKS[name], episodes=2, progress=False)
    assert (random.total.successes, random.total.episodes) == (0, 2)
