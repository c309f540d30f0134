"""Limits out of a robot's own file, and the workspace and slow start beside them."""

import numpy as np
import pytest

from syvla.serving.contract.action_limits import ActionLimits, CommandLimiter
from syvla.serving.contract.robot_description import JointLimits, limits_of_robot, read_joint_limits

URDF = """<?xml version="1.0"?>
<robot name="arm">
  <joint name="shoulder" type="revolute"><limit lower="-1.5" upper="2.0" velocity="3.0" effort="40"/></joint>
  <joint name="elbow" type="revolute"><limit lower="-2" upper="2" velocity="2.0" effort="20"/>
    <safety_controller soft_lower_limit="-1.8" soft_upper_limit="1.9" k_velocity="1"/></joint>
  <joint name="wheel" type="continuous"><limit velocity="6" effort="5"/></joint>
  <joint name="finger" type="prismatic"><limit lower="0" upper="0.04" velocity="0.1" effort="10"/></joint>
  <joint name="base" type="fixed"/>
  <transmission name="t"><joint name="shoulder"/></transmission>
</robot>"""
MJCF = """<mujoco><compiler angle="degree"/><default><default class="big"><joint range="-90 45"/></default></default>
<worldbody><body><joint name="shoulder" type="hinge" class="big"/><geom size="0.1"/>
<body><joint name="slide" type="slide"/><geom size="0.1"/></body></body></worldbody>
<actuator><position name="slide_motor" joint="slide" ctrlrange="0 0.3" forcerange="-7 7"/></actuator></mujoco>"""


@pytest.fixture
def urdf(tmp_path):
    path = tmp_path / "arm.urdf"
    path.write_text(URDF)
    return path


def test_a_urdf_gives_ranges_speeds_and_efforts(urdf):
    inf = float("inf")
    assert read_joint_limits(urdf) == {
        "shoulder": JointLimits(-1.5, 2.0, 3.0, 40.0),
        "elbow": JointLimits(-1.8, 1.9, 2.0, 20.0),
        "wheel": JointLimits(-inf, inf, 6.0, 5.0),
        "finger": JointLimits(0.0, 0.04, 0.1, 10.0),
        "base": JointLimits(),
    }


def test_an_mjcf_gives_ranges_in_radians_with_its_defaults(tmp_path):
    pytest.importorskip("mujoco")
    path = tmp_path / "arm.xml"
    path.write_text(MJCF)
    found = read_joint_limits(path)
    assert found["shoulder"].low == pytest.approx(-np.pi / 2)
    assert found["shoulder"].high == pytest.approx(np.pi / 4)
    assert found["slide"] == JointLimits()
    assert (found["slide_motor"].low, found["slide_motor"].high, found["slide_motor"].effort) == (0.0, 0.3, 7.0)


def test_limits_of_the_robot_and_of_the_file_hold_at_once(urdf):
    entry = {
        "joints_from": {"path": str(urdf), "joints": {"grip": "finger", "torso": None}},
        "high": {"shoulder": 1.0},
        "max_step": [None, 0.05, None, None],
    }
    limits = ActionLimits.of(entry, 4, ["shoulder", "elbow", "grip", "torso"], control_hz=20.0)
    np.testing.assert_allclose(limits.low, [-1.5, -1.8, 0, -np.inf])
    np.testing.assert_allclose(limits.high, [1.0, 1.9, 0.04, np.inf])
    np.testing.assert_allclose(limits.max_step, [0.15, 0.05, 0.005, np.inf])
    again = ActionLimits.of(limits.describe(), 4)  # what a client reads in the server's metadata, without the file
    np.testing.assert_array_equal(again.max_step, limits.max_step)
    assert limits_of_robot(urdf, ["elbow"])["max_step"] == [None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<robot><joint name='a' type='revolute'><limit lower='x' upper='1'/></joint></robot>",
            "lower: expected a number",
        ),
        (
            "<robot><joint name='a' type='revolute'><limit lower='2' upper='1'/></joint></robot>",
            "expected lower <= upper",
        ),
        ("<sdf/>", "expected a URDF .* got <sdf>"),
        ("<robot>", "cannot be read as URDF or MJCF"),
        ('<!DOCTYPE r [<!ENTITY a "aaaa">]><robot>&a;</robot>', "without DOCTYPE"),
    ],
)
def test_files_that_are_no_robot_are_named(tmp_path, text, message):
    path = tmp_path / "arm.urdf"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_joint_limits(path)


def test_actions_without_a_joint_are_named(urdf):
    with pytest.raises(ValueError, match=r"no joints \['hand'\], it has \['base', 'elbow'"):
        limits_of_robot(urdf, ["hand"])
    with pytest.raises(ValueError, match="joints: expected names of actions"):
        limits_of_robot(urdf, ["elbow"], joints={"hand": "elbow"})
    with pytest.raises(ValueError, match="joints_from: needs the names"):
        ActionLimits.of({"joints_from": {"path": str(urdf)}}, 2)
    with pytest.raises(ValueError, match=r"max_step: expected names out of \['elbow'\], got \['ellbow'\]"):
        ActionLimits.of({"max_step": {"ellbow": 1.0}}, 1, ["elbow"])


BOX = {"actions": [0, 1], "low": [0.0, -1.0], "high": [1.0, 1.0]}


def test_positions_outside_the_box_are_moved_to_its_surface():
    limiter = CommandLimiter(ActionLimits.of({"workspace": BOX}, 3))
    command, notes = limiter.limit(np.array([1.5, -3.0, 9.0]), np.zeros(3))
    assert command.tolist() == [1.0, -1.0, 9.0]
    assert [note.partition(":")[0] for note in notes] == ["workspace", "workspace"]
    chunk = np.array([[1.5, 0.0, 0.0]], np.float32)
    limited, _ = ActionLimits.of({"workspace": BOX}, 3).apply(chunk, np.zeros(3))  # the server's side
    assert limited.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("seed", range(5))
def test_displacements_never_lead_out_of_the_box_and_bring_nobody_back_by_force(seed):
    box = {**BOX, "relative": True, "states": [2, 3]}
    limiter, rng = (
        CommandLimiter(ActionLimits.of({"workspace": box, "max_step": [0.3, 0.3]}, 2)),
        np.random.default_rng(seed),
    )
    at = np.array([0.5, 0.0])
    for _ in range(200):
        command, _ = limiter.limit(rng.normal(size=2), np.concatenate([[7.0, 7.0], at]))
        at = at + command
        assert (at >= [-1e-6, -1 - 1e-6]).all()
        assert (at <= 1 + 1e-6).all()
    limiter = CommandLimiter(ActionLimits.of({"workspace": box}, 2))
    outside = np.array([0.0, 0.0, 1.4, 0.0])
    assert limiter.limit(np.zeros(2), outside)[0].tolist() == [0.0, 0.0]
    assert limiter.limit(np.array([0.2, 0.0]), outside)[0].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(limiter.limit(np.array([-0.2, 0.0]), outside)[0], [-0.2, 0.0], atol=1e-7)


@pytest.mark.parametrize(
    "change",
    [{"actions": [0, 5]}, {"low": [2.0, 0.0]}, {"low": [0.0]}, {"relative": True}, {"states": [1, 2]}, {"size": 1}],
)
def test_boxes_that_are_none_are_refused(change):
    with pytest.raises(ValueError, match="workspace: expected"):
        ActionLimits.of({"workspace": {**BOX, **change}}, 3)


def test_two_boxes_hold_at_once_or_are_refused():
    first = ActionLimits.of({"workspace": BOX}, 2)
    both = first.joined(ActionLimits.of({"workspace": {**BOX, "low": [0.5, -2.0]}}, 2))
    assert (both.workspace.low.tolist(), both.workspace.high.tolist()) == ([0.5, -1.0], [1.0, 1.0])
    assert ActionLimits.of(both.describe(), 2).workspace.low.tolist() == [0.5, -1.0]
    for other in ({**BOX, "actions": [1, 0]}, {**BOX, "low": [2.0, 0.0], "high": [3.0, 1.0]}):
        with pytest.raises(ValueError, match="workspace:"):
            first.joined(ActionLimits.of({"workspace": other}, 2))


def test_a_slow_start_lets_the_step_grow_and_begins_anew_with_each_episode():
    limiter = CommandLimiter(ActionLimits.of({"max_step": [1.0], "slow_start_steps": 4}, 1))
    limiter.begin_from(np.zeros((1, 1), np.float32))
    far = [np.array([100.0]), np.zeros(1)]
    assert [float(limiter.limit(*far)[0][0]) for _ in range(6)] == [0.25, 0.75, 1.5, 2.5, 3.5, 4.5]
    limiter.new_episode()
    assert float(limiter.limit(*far)[0][0]) == 4.75
    with pytest.raises(ValueError, match="slow_start_steps: scales max_step"):
        ActionLimits.of({"slow_start_steps": 4}, 1)


def test_a_slow_start_in_full_motion_brakes_within_the_acceleration():
    limits = ActionLimits.of({"max_step": [1.0], "max_acceleration": [0.1], "slow_start_steps": 20}, 1)
    limiter = CommandLimiter(limits)
    limiter.begin_from(np.array([[0.0], [1.0]], np.float32))
    limiter.new_episode()
    commands = [0.0, 1.0] + [float(limiter.limit(np.array([100.0]), np.zeros(1))[0][0]) for _ in range(30)]
    assert np.abs(np.diff(commands, 2)).max() <= 0.1 + 1e-5
    assert np.abs(np.diff(commands)).max() <= 1.0 + 1e-5
    assert np.diff(commands)[5] < 0.7
