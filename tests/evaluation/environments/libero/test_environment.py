"""LIBERO: official tasks, sentences, initial states and conventions; an expert that succeeds where random actions fail."""

import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from simulators import ROOT, check_a_reset_forgets, libero_assets, make_or_skip, random_policy_succeeds, run_expert

from syvla.evaluation.environments import EVALUATION_SEED_OFFSET, make_environment, make_expert
from syvla.evaluation.environments.libero import tasks as libero_tasks

pytest.importorskip("libero")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def soup():
    """ "pick up the alphabet soup and place it in the basket"."""
    env = make_or_skip("libero", "libero_object_0", image_size=64)
    yield env
    env.close()


@pytest.fixture(scope="module")
def bowl():
    """ "pick up the black bowl between the plate and the ramekin and place it on the plate"."""
    env = make_or_skip("libero", "libero_spatial_0", image_size=64)
    yield env
    env.close()


def test_tasks_and_sentences_are_liberos_own():
    pytest.importorskip("torch")  # which LIBERO's list of tasks imports
    libero_tasks.import_libero(libero_assets())
    from libero.libero import benchmark

    assert len(libero_tasks.TASKS) == 40 + 90
    for suite in libero_tasks.SUITES:
        official = benchmark.get_benchmark(suite)()
        assert libero_tasks.SIZES[suite] == official.n_tasks
        for number in range(official.n_tasks):
            task, name = official.get_task(number), libero_tasks.task_files(suite)[number]
            assert (task.name, task.language) == (name, libero_tasks.instruction(name))


def test_step_limits_are_those_of_the_published_results(soup):
    limits = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
    assert limits == libero_tasks.STEP_LIMITS
    assert soup.max_steps == 280
    assert libero_tasks.suite_and_number("libero_10_9") == ("libero_10", 9)


@pytest.mark.parametrize("suite", libero_tasks.SUITES)
def test_initial_states_are_read_as_torch_reads_them(suite):
    torch = pytest.importorskip("torch")
    import _codecs

    name = libero_tasks.task_files(suite)[4]
    path = libero_tasks.package_folder() / "init_files" / suite / f"{name}.pruned_init"
    reconstruct = np.array(0).__reduce__()[0]
    known = [(reconstruct, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype, _codecs.encode]
    with torch.serialization.safe_globals([*known, type(np.dtype("f8"))]):
        official = torch.load(path, weights_only=True)
    states = libero_tasks.initial_states(suite, 4)
    assert np.array_equal(states, official)
    assert len(states) == 50


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    with pytest.raises(ValueError, match="expected one little-endian float64 matrix"):
        libero_tasks._array_in_pickle(pickle.dumps(Harmful(), protocol=2), tmp_path)
    assert not (tmp_path / "made").exists()


def test_missing_assets_say_what_to_put_where(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        make_environment("libero", "libero_goal_0", assets=tmp_path)
    for hint in (str(tmp_path), "scenes", "hf download lerobot/libero-assets", "LIBERO_ASSETS", "assets=FOLDER"):
        assert hint in str(caught.value)


def test_one_missing_file_of_the_assets_is_named(tmp_path):
    for folder in libero_assets().iterdir():
        if folder.is_dir() and folder.name != "stable_hope_objects":
            (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / "stable_hope_objects").mkdir()
    with pytest.raises(FileNotFoundError, match=r"lacks alphabet_soup\.xml, .* of task 'libero_object_0'"):
        make_environment("libero", "libero_object_0", assets=tmp_path)


def test_the_first_import_asks_nothing_and_writes_nothing_into_the_home(tmp_path):
    code = (
        "from syvla.evaluation.environments.libero import tasks as libero_tasks\n"
        "import pathlib, os\n"
        f"libero_tasks.import_libero(pathlib.Path({str(libero_assets())!r}))\n"
        "print('LIBERO_CONFIG_PATH' in os.environ)"
    )
    unset = ("LIBERO_CONFIG_PATH", "PYTHONPATH")
    variables = {key: value for key, value in os.environ.items() if key not in unset}
    variables |= {"HOME": str(tmp_path), "MUJOCO_GL": "egl"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=variables,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == "False"
    assert not (tmp_path / ".libero").exists()


def test_evaluation_starts_from_the_official_states_after_ten_steps_of_settling(soup):
    state = soup.initial_states[3]
    soup.reset(seed=EVALUATION_SEED_OFFSET + 10_000 + 53)  # seed 1 of an evaluation, episode 53: state 3 of the 50
    assert soup.data.time == pytest.approx(state[0] + 10 / soup.control_hz)
    official = state[1 : 1 + soup.model.nq]
    address = soup.model.jnt_qposadr[soup.model.body("alphabet_soup_1_main").jntadr[0]]
    assert np.allclose(soup.data.qpos[address : address + 2], official[address : address + 2], atol=0.01)
    assert soup.state[6] - soup.state[7] > 0.07, "the no-op leaves the gripper open"
    by_option = soup.reset(seed=0, options={"init_state": 3})[0]["state"]
    assert np.allclose(by_option, soup.reset(seed=EVALUATION_SEED_OFFSET + 3)[0]["state"], atol=1e-5)
    with pytest.raises(ValueError, match=r"init_state.*expected 0 to 49, got 50"):
        soup.reset(seed=0, options={"init_state": 50})


def test_demonstrations_start_elsewhere_and_leave_numpys_generator_alone(soup):
    def start(seed):
        soup.reset(seed=seed)
        return soup.data.qpos.copy()

    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    first, again, other = start(0), start(0), start(1)
    assert np.random.random() == expected
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    official = soup.initial_states[:, 1 : 1 + soup.model.nq]
    assert np.abs(official - first).max(axis=1).min() > 1e-3, "none of the official states"


@pytest.mark.parametrize("seed", [0, EVALUATION_SEED_OFFSET + 3])
def test_a_reset_forgets_everything(soup, seed):
    """Robosuite's gripper integrates its commands, and its soft reset keeps the sum."""
    check_a_reset_forgets(soup, seed)
    soup.simulator.robots[0].gripper.current_action[:] = 1.0
    soup.reset(seed=seed)
    kept = soup.data.qpos.copy()
    soup.simulator.robots[0].gripper.current_action[:] = -1.0
    soup.reset(seed=seed)
    assert np.array_equal(soup.data.qpos, kept)


def test_action_conventions(soup):
    """1 moves along the world's axes; -1 opens the gripper and 1 closes it."""
    for axis in range(3):
        for sign in (1, -1):
            soup.reset(seed=0)
            start = soup.state[:3]
            action = np.array([0.0] * 6 + [-1.0])
            action[axis] = sign
            for _ in range(4):
                soup.step(action)
            moved = sign * (soup.state[:3] - start)
            assert moved[axis] > 0.02
            assert np.delete(np.abs(moved), axis).max() < 0.5 * moved[axis]
    for gripper, opening in ((1.0, 0.005), (-1.0, 0.075)):
        for _ in range(25):
            soup.step(np.array([0.0] * 6 + [gripper]))
        assert soup.state[6] - soup.state[7] == pytest.approx(opening, abs=0.006)


def test_the_state_is_position_axis_angle_and_fingers(soup):
    from scipy.spatial.transform import Rotation

    soup.reset(seed=0)
    rng = np.random.default_rng(0)
    rotations = []
    for _ in range(15):
        observation, *_ = soup.step(np.array([*rng.uniform(-1, 1, 6), -1.0]))
        state, quaternion = observation["state"], soup._seen["robot0_eef_quat"]
        rotations.append(state[3:6])
        independent = Rotation.from_quat(quaternion)
        assert (Rotation.from_rotvec(state[3:6]) * independent.inv()).magnitude() < 1e-3
        assert np.allclose(state[:3], soup._seen["robot0_eef_pos"])
        assert np.allclose(state[6:], soup._seen["robot0_gripper_qpos"])
    assert np.abs(np.diff(rotations, axis=0)).max() < 0.5, "no flip from one step to the next"


def test_the_axis_angle_does_not_flip_where_the_gripper_points_down():
    from syvla.evaluation.environments.libero.environment import axis_angle

    before, after = (np.array([np.sqrt(1 - w * w), 0.0, 0.0, w]) for w in (1e-3, -1e-3))
    assert np.allclose(axis_angle(before), axis_angle(after), atol=0.01)
    assert np.linalg.norm(axis_angle(after)) > np.pi
    assert np.allclose(axis_angle(np.array([0.0, 0.0, 0.0, 1.0])), 0)
    quarter = np.array([0.0, np.sin(np.pi / 4), 0.0, np.cos(np.pi / 4)])
    assert np.allclose(axis_angle(quarter), [0, np.pi / 2, 0])


@pytest.mark.parametrize("camera", ["agentview", "robot0_eye_in_hand"])
def test_pictures_are_liberos_turned_by_180_degrees(bowl, camera):
    """Compared with what robosuite itself draws, which published results turn by 180 degrees."""
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    bowl.reset(seed=EVALUATION_SEED_OFFSET)
    ours = bowl.render_camera(camera, 64, 64).astype(float)
    simulation = bowl.simulator.sim
    if simulation._render_context_offscreen is None:
        context = MjRenderContextOffscreen(simulation, device_id=-1)
        context.vopt.geomgroup[0] = 0
    raw = np.asarray(simulation.render(camera_name=camera, width=64, height=64)).astype(float)
    turned, others = raw[::-1, ::-1], (raw, raw[::-1], raw[:, ::-1])

    def likeness(picture):
        return np.corrcoef(ours.ravel(), picture.ravel())[0, 1]

    assert likeness(turned) > 0.9
    assert likeness(turned) > max(map(likeness, others)) + 0.05


@pytest.mark.parametrize("name", ["soup", "bowl"])
def test_the_expert_succeeds_and_random_actions_fail(name, request):
    env = request.getfixturevalue(name)
    info, thoughts, steps = run_expert(env, 0)
    assert info["success"]
    assert steps < env.max_steps
    assert len(set(thoughts)) == len(thoughts) >= 6, "the sub-tasks come once each, in order"
    assert run_expert(env, EVALUATION_SEED_OFFSET)[0]["success"]
    assert not random_policy_succeeds(env, EVALUATION_SEED_OFFSET)


@pytest.mark.parametrize(
    ("task", "regrasps"),
    [("libero_goal_8", 0), ("libero_object_2", 0), ("libero_10_7", 1)],
    ids=lambda value: str(value),
)
def test_experts_of_other_tasks_succeed_on_an_official_start(task, regrasps):
    """A bowl at its rim, a bottle at its neck, and two products one after the other."""
    env = make_or_skip("libero", task, image_size=32)
    info, thoughts, steps = run_expert(env, EVALUATION_SEED_OFFSET + 1)
    assert info["success"]
    assert steps < env.max_steps
    assert sum(thought.startswith("grasp") for thought in thoughts) == 1 + regrasps
    env.close()


def test_every_expert_moves_things_that_its_task_has():
    from syvla.evaluation.environments.libero import expert

    assert len(expert.TASKS) == 23
    for task, moves in expert.MOVES.items():
        suite, number = libero_tasks.suite_and_number(task)
        scene = libero_tasks.package_folder() / "bddl_files" / suite / f"{libero_tasks.task_files(suite)[number]}.bddl"
        goals = re.findall(r"\((?:On|In) (\w+) (\w+)\)", scene.read_text().partition("(:goal")[2])
        assert [move.thing for move in moves] == [thing for thing, _ in goals]
        assert all(place.startswith(move.goal) for move, (_, place) in zip(moves, goals, strict=True))


def test_stand_in_assets_are_named_beside_results(soup):
    marked = any("stand-in" in path.read_text() for path in libero_assets().glob("README*"))
    assert soup.description["assets"] == ("stand-ins, not comparable" if marked else "official")


def test_a_task_without_expert_lists_those_that_have_one(soup, monkeypatch):
    monkeypatch.setattr(soup, "task", "libero_goal_0")
    with pytest.raises(ValueError, match=r"'libero_goal_0' has no scripted expert.*libero_object_0"):
        make_expert(soup)
