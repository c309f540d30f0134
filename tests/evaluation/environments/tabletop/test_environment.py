"""The tabletop: its units and limits, that a seed means one episode, and that its experts solve every task."""

import re
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from simulators import check_a_reset_forgets

from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.environments import (
    ENVIRONMENTS,
    EVALUATION_SEED_OFFSET,
    RobotEnvironment,
    make_environment,
    make_expert,
)
from syvla.evaluation.environments.arm_kinematics import ArmKinematics, rotation_about_z
from syvla.evaluation.environments.demonstration import demonstrate
from syvla.evaluation.environments.tabletop.environment import CONTROLS, TabletopEnv
from syvla.evaluation.environments.tabletop.ray_camera import RayCamera
from syvla.evaluation.environments.tabletop.scene import COLORS, JOINT_LIMITS, OBJECT_HALF_SIZE
from syvla.evaluation.environments.tabletop.tasks import (
    CLEARANCE,
    HOLD_STEPS,
    LIFT_HEIGHT,
    UNSEEN_X_RANGE,
    X_RANGE,
    lowest_extent,
)

SEEDS = range(EVALUATION_SEED_OFFSET - 10, EVALUATION_SEED_OFFSET)


def hold(env, action, steps):
    for _ in range(steps):
        result = env.step(action)
    return result


def observations_equal(first, second):
    pictures = all(np.array_equal(first["images"][name], second["images"][name]) for name in first["images"])
    return pictures and np.array_equal(first["state"], second["state"])


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("task", TabletopEnv.tasks)
def test_experts_solve_their_tasks(task, control):
    env = make_environment("tabletop", task, control=control, image_size=1)
    expert = make_expert(env)
    attempts = [demonstrate(env, expert, seed=seed) for seed in SEEDS]
    assert np.mean([attempt.success for attempt in attempts]) >= 0.9
    assert all(10 <= len(attempt.actions) <= 40 for attempt in attempts if attempt.success)


@pytest.mark.parametrize(
    ("task", "order"),
    [
        ("lift", ["reach", "grasp", "lift"]),
        ("place", ["reach", "grasp", "lift", "move", "release"]),
        ("bar_lift", ["reach", "grasp", "lift"]),
    ],
)
def test_thoughts_go_through_the_sub_tasks_in_order(task, order):
    env = make_environment("tabletop", task, image_size=1)
    attempt = demonstrate(env, make_expert(env), seed=3)
    distinct = list(dict.fromkeys(attempt.thoughts))
    assert [thought.split()[0] for thought in distinct] == order
    assert all(env.layout.target in thought for thought in distinct)
    arms = "both arms" if task == "bar_lift" else f"the {env.layout.arms[0]} arm"
    assert all(arms in thought for thought in distinct)


@pytest.mark.parametrize("task", ["lift", "place"])
def test_experts_work_among_distractors_and_with_cylinders(task):
    env = make_environment("tabletop", task, image_size=1, shapes=("cube", "cylinder"), distractors=2)
    expert = make_expert(env)
    assert np.mean([demonstrate(env, expert, seed=seed).success for seed in SEEDS]) >= 0.9


def test_experts_recover_from_noise_and_pushes_while_their_actions_stay_clean():
    env = make_environment("tabletop", "lift", image_size=1)
    expert = make_expert(env)
    clean = [demonstrate(env, expert, seed=seed) for seed in SEEDS]
    pushed = [demonstrate(env, expert, seed=seed, action_noise=0.1, recovery=True) for seed in SEEDS]
    assert np.mean([attempt.success for attempt in pushed]) >= 0.9
    assert sum(len(attempt.actions) for attempt in pushed) > sum(len(attempt.actions) for attempt in clean)
    assert np.array_equal(clean[0].actions[0], pushed[0].actions[0])  # the label of the first frame knows no noise


@pytest.mark.parametrize("task", TabletopEnv.tasks)
@pytest.mark.parametrize("control", CONTROLS)
def test_gymnasium_accepts_the_environment(task, control):
    env = make_environment("tabletop", task, control=control, image_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on normalized actions; ours are in physical units
        check_env(env)
    assert isinstance(env, RobotEnvironment)


@pytest.mark.parametrize("task", TabletopEnv.tasks)
def test_a_seed_means_one_episode_to_the_bit(task):
    rng = np.random.default_rng(0)
    first, second = (make_environment("tabletop", task, distractors=0) for _ in range(2))
    second.reset(seed=99)  # what happened before must not matter
    hold(second, second.state, 2)
    one, info = first.reset(seed=5)
    two, other_info = second.reset(seed=5)
    assert observations_equal(one, two)
    assert info == other_info
    for _ in range(5):
        action = first.action_space.low + rng.random(14).astype(np.float32) * (
            first.action_space.high - first.action_space.low
        )
        assert observations_equal(first.step(action)[0], second.step(action)[0])


@pytest.mark.parametrize(("task", "control"), [("place", "joints"), ("lift", "ee_delta"), ("bagging", "joints")])
def test_a_reset_forgets_everything(task, control):
    check_a_reset_forgets(make_environment("tabletop", task, control=control, image_size=1), seed=3, histories=4)


def test_seeds_vary_color_position_and_arm():
    env = make_environment("tabletop", "lift", image_size=1)
    layouts = []
    for seed in range(30):
        env.reset(seed=seed)
        layouts.append(env.layout)
    assert {layout.colors["object"] for layout in layouts} == set(COLORS)
    assert {layout.arms for layout in layouts} == {("left",), ("right",)}
    assert len({layout.poses["object"] for layout in layouts}) == len(layouts)
    for layout in layouts:  # the nearer arm, and the instruction says what lies there
        assert (layout.poses["object"][1] > 0) == (layout.arms == ("left",))
        assert layout.instruction == f"lift the {layout.colors['object']} cube"


def test_things_on_the_table_keep_their_distance_and_colors():
    env = make_environment("tabletop", "place", image_size=1, distractors=2)
    for seed in range(20):
        env.reset(seed=seed)
        places = np.array([pose[:2] for pose in env.layout.poses.values()])
        distances = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(len(places), 1)]
        assert distances.min() >= CLEARANCE
        assert len(set(env.layout.colors.values())) == 4


@pytest.mark.parametrize(
    ("task", "instruction", "place"),
    [
        ("lift", "lift the yellow cylinder", (-0.04426370664893275, -0.03165276355285291)),
        ("place", "put the purple cylinder on the green pad", (0.03189757523159498, -0.07765884217057704)),
        ("bar_lift", "lift the orange bar with both arms", (0.004280804238748329, -0.018361059042552214)),
    ],
)
def test_published_seeds_keep_their_episodes(task, instruction, place):
    """As drawn by the version whose success rates the README gives."""
    env = make_environment("tabletop", task, image_size=1, shapes=("cube", "cylinder"), distractors=1)
    env.reset(seed=0)
    assert env.layout.instruction == instruction
    assert env.layout.poses["object"][:2] == pytest.approx(place, abs=1e-15)


def test_place_out_of_distribution_begins_beyond_every_place_of_the_demonstrations():
    """Only the object's place leaves the distribution; instruction and pad are drawn as in domain."""
    for split, (low, high) in (("in_domain", X_RANGE), ("ood", UNSEEN_X_RANGE)):
        env = TabletopEnv("place", image_size=8, split=split)
        for seed in range(20):
            env.reset(seed=seed)
            assert low <= env.layout.poses["object"][0] <= high
            assert X_RANGE[0] <= env.layout.poses["pad"][0] <= X_RANGE[1]
    assert UNSEEN_X_RANGE[0] - X_RANGE[1] >= 0.015 - 1e-9
    result = evaluate_closed_loop(
        "expert", tasks="place", episodes=6, environment_options={"split": "ood", "image_size": 8}, progress=False
    )
    assert result.total.successes == 6


def test_state_equals_the_commanded_joints_after_settling():
    env = make_environment("tabletop", "lift", image_size=1)
    env.reset(seed=0, options={"position": (0.0, 0.1)})
    target = env.state.copy()
    target[[0, 1, 2, 3, 4, 5]] += [0.3, -0.2, 0.1, 0.4, -0.3, 0.5]  # radians
    target[6] = 0.04  # meters
    target[13] = 0.0
    observation, *_ = hold(env, target, 12)
    assert observation["state"] == pytest.approx(target, abs=2e-3)


def test_opening_is_the_distance_between_the_pads_in_meters():
    env = make_environment("tabletop", "lift", image_size=1)
    env.reset(seed=0)
    target = env.state.copy()
    target[6] = 0.06
    hold(env, target, 8)
    pads = [env.data.geom(f"left_{name}_finger") for name in ("inner", "outer")]
    between = np.linalg.norm(pads[0].xpos - pads[1].xpos) - 2 * env.model.geom("left_inner_finger").size[1]
    assert between == pytest.approx(0.06, abs=1e-3)
    assert env.state[6] == pytest.approx(between, abs=1e-6)


def test_targets_beyond_the_limits_are_clipped_to_them():
    env = make_environment("tabletop", "lift", image_size=1)
    env.reset(seed=0)
    target = env.state.copy()
    target[7] = 100.0  # right base yaw
    target[13] = -5.0
    decoded = env.decode_action(target)
    assert (decoded[7], decoded[13]) == (JOINT_LIMITS[0, 1], 0.0)  # so that no target winds up beyond a limit
    observation, *_ = hold(env, target, 15)
    assert observation["state"][7] == pytest.approx(JOINT_LIMITS[0, 1], abs=5e-3)
    assert observation["state"][13] == pytest.approx(0.0, abs=5e-3)


def test_one_step_moves_no_joint_faster_than_its_limit():
    env = make_environment("tabletop", "lift", image_size=1)
    env.reset(seed=0)
    before = env.state.copy()
    env.step(np.where(before > 0, env.joint_low, env.joint_high))
    assert (np.abs(env.state - before) <= env.max_step_motion * 1.1).all()


def test_end_effector_deltas_are_meters_and_radians_in_the_world_frame():
    env = make_environment("tabletop", "lift", control="ee_delta", image_size=1)
    env.reset(seed=0)
    position, rotation = env.kinematics["left"].forward(env.state[:6])
    still = np.zeros(14)
    still[[6, 13]] = 0.1
    move = still.copy()
    move[:3] = [0.03, -0.02, 0.01]
    move[5] = 0.2
    env.step(move)
    hold(env, still, 4)
    reached, orientation = env.kinematics["left"].forward(env.state[:6])
    assert reached - position == pytest.approx(move[:3], abs=1.5e-3)
    assert orientation == pytest.approx(rotation_about_z(0.2) @ rotation, abs=5e-3)
    assert env.kinematics["right"].forward(env.state[7:13])[0][1] == pytest.approx(-0.17, abs=1e-3)


def test_inverse_kinematics_undoes_forward_kinematics():
    env = make_environment("tabletop", "lift", image_size=1)
    env.reset(seed=0)
    arm = ArmKinematics(env.model, "right")
    rng = np.random.default_rng(1)
    for _ in range(20):
        position = np.array([rng.uniform(-0.08, 0.1), rng.uniform(-0.2, 0.05), rng.uniform(0.03, 0.2)])
        rotation = rotation_about_z(rng.uniform(-1.2, 1.2))
        reached, orientation = arm.forward(arm.inverse(position, rotation, env.state[7:13]))
        assert reached == pytest.approx(position, abs=1e-3)
        assert orientation == pytest.approx(rotation, abs=1e-2)


def test_success_is_a_height_held_for_several_steps():
    env = make_environment("tabletop", "lift", image_size=1)
    expert = make_expert(env)
    env.reset(seed=1)
    expert.reset()
    heights, done = [], False
    while not done:
        _, reward, done, truncated, info = env.step(expert.act()[0])
        heights.append(lowest_extent(env.model, env.data, "object"))
        assert not truncated
        assert reward == float(info["success"]) == float(done)
    assert min(heights[-HOLD_STEPS:]) >= LIFT_HEIGHT > heights[-HOLD_STEPS - 1]


def test_doing_nothing_fails_at_the_step_limit():
    env = make_environment("tabletop", "place", image_size=1, max_steps=7)
    env.reset(seed=0)
    for step in range(7):
        _, reward, terminated, truncated, info = env.step(env.state)
        assert (terminated, reward, info["success"]) == (False, 0.0, False)
        assert truncated == (step == 6)


def test_objects_rest_on_the_table():
    env = make_environment("tabletop", "lift", image_size=1)
    env.reset(seed=4)
    hold(env, env.state, 10)
    assert env.data.body("object").xpos[2] == pytest.approx(OBJECT_HALF_SIZE, abs=2e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_head_camera_shows_the_cube_in_several_pixels_where_it_lies(side):
    env = make_environment("tabletop", "lift", image_size=32)
    y = 0.1 if side == "left" else -0.1
    observation, _ = env.reset(seed=0, options={"position": (0.03, y), "color": "red"})
    red, green, blue = np.moveaxis(observation["images"]["head"].astype(int), -1, 0)
    rows, columns = np.nonzero((red > 2 * green) & (red > 2 * blue))
    assert len(rows) >= 16
    assert (columns.mean() < 16) == (side == "left")


def test_the_instruction_color_changes_the_picture_and_nothing_else():
    env = make_environment("tabletop", "lift")
    red, _ = env.reset(seed=7, options={"color": "red"})
    blue, info = env.reset(seed=7, options={"color": "blue"})
    assert info["instruction"] == "lift the blue cube"
    assert not np.array_equal(red["images"]["head"], blue["images"]["head"])
    assert np.array_equal(red["state"], blue["state"])


def test_pictures_come_in_any_size():
    env = make_environment("tabletop", "lift", image_size=(12, 20), render_size=(30, 40))
    observation, _ = env.reset(seed=0)
    assert observation["images"]["left_wrist"].shape == (12, 20, 3)
    assert env.render().shape == (30, 40, 3)
    assert env.render_camera("right_wrist", 9, 7).dtype == np.uint8


def test_supersampling_averages_finer_rays():
    env = make_environment("tabletop", "lift")
    env.reset(seed=0)
    fine = RayCamera(env.model, "head", 64, 64).render(env.data).astype(float)
    coarse = RayCamera(env.model, "head", 32, 32, supersampling=2).render(env.data)
    assert coarse == pytest.approx(fine.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)), abs=1.0)


def test_a_picture_from_above_shows_things_where_they_are():
    """Straight above the table the picture's width on the table follows from the field of view."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody><camera name="top" pos="0 0 1" xyaxes="1 0 0 0 1 0" fovy="90"/>
        <geom type="box" size=".5 .25 .001" pos=".1 .3 0" rgba="1 0 0 1"/></worldbody></mujoco>"""
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    picture = RayCamera(model, "top", 40, 40).render(data)
    hit = picture[..., 0] > 2 * picture[..., 2].astype(int)
    rows, columns = np.nonzero(hit.any(axis=1))[0], np.nonzero(hit.any(axis=0))[0]
    assert (len(columns), len(rows)) == (20, 10)  # half and a quarter of the two meters seen
    assert (columns[0], rows[0]) == (12, 9)  # x to the right, y upwards


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"task": "juggle"},
            r"task: expected one of \['lift', 'place', 'bar_lift', 'calculating', 'bagging', 'place_named'\], got 'juggle'",
        ),
        ({"task": "lift", "control": "torque"}, "control: expected one of"),
        ({"task": "lift", "shapes": ("ball",)}, "shapes: expected one of"),
        ({"task": "lift", "distractors": 9}, "distractors: expected 0 to 2, got 9"),
        ({"task": "lift", "control_hz": 0}, "control_hz"),
        ({"task": "lift", "max_steps": 0}, "max_steps"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_environment("tabletop", **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hue": "red"}, r"options: unknown \['hue'\]; known are"),
        ({"color": "mauve"}, r"options\['color'\]: expected one of .*'mauve'"),
        ({"position": (0, 0, 0)}, r"options\['position'\]: expected \(x, y\) in meters"),
    ],
)
def test_bad_reset_options_are_named(options, message):
    env = make_environment("tabletop", "lift", image_size=1)
    with pytest.raises(ValueError, match=message):
        env.reset(seed=0, options=options)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(7), r"action: expected shape \(14,\) = left_joint_1.*got \(7,\)"),
        (np.full(14, np.nan), "action: expected finite values"),
        (np.array([0.0] * 13 + [np.inf]), r"\['right_gripper'\]"),
    ],
)
def test_bad_actions_are_refused(action, message):
    env = make_environment("tabletop", "lift", image_size=1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)


def test_using_it_before_reset_is_refused():
    env = make_environment("tabletop", "lift", image_size=1)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.zeros(14))
    with pytest.raises(RuntimeError, match="call reset"):
        env.render()


def test_unknown_environments_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=re.escape(f"environment: expected one of {sorted(ENVIRONMENTS)}")):
        make_environment("moon", "lift")


@pytest.mark.parametrize(("control_hz", "timestep"), [(10, 0.005), (30, 1 / 210), (200, 0.005), (7.5, 1 / 202.5)])
def test_any_control_rate_is_kept_exactly(control_hz, timestep):
    """Two hundred physics steps a second, or a few more, so that a control step is a whole number of them."""
    env = TabletopEnv("lift", control_hz=control_hz)
    env.reset(seed=0)
    before = env.data.time
    env.step(env.state)
    assert env.control_hz == control_hz
    assert env.model.opt.timestep == pytest.approx(timestep, rel=1e-12)
    assert env.data.time - before == pytest.approx(1 / control_hz, rel=1e-9)
