"""The seam benchmark's robot: answers that take control steps, and what is measured of its commands."""

import numpy as np
import pytest

from benchmarks.chunk_seams import ACTION_DIM, HOLD, SimulatedExecutor, motion, summary


def drive(mode, latency, steps, replan=4):
    """First dimension of the commands: 100 times the chunk's number plus the step."""
    executor, commands, asked = SimulatedExecutor(mode, replan, latency), [], 0
    for _ in range(steps):
        if executor.ask() is not None:
            chunk = np.zeros((12, ACTION_DIM)) + 100 * asked + np.arange(12)[:, None]
            executor.answered(chunk)
            asked += 1
        commands.append(float(executor.act(np.zeros(1))[0]))
    return commands


def test_an_answer_takes_its_control_steps():
    assert drive("switch", 0, 6) == [0, 1, 2, 3, 100, 101]
    assert drive("switch", 2, 8) == [0, 1, 2, 3, 4, 5, 102, 103]
    assert drive(HOLD, 2, 8) == [0, 1, 2, 3, 3, 3, 100, 101]  # stands still, and begins where the answer begins


def test_jump_and_acceleration_of_known_commands():
    commands = np.zeros((5, ACTION_DIM))
    commands[:, 0] = [0, 0.1, 0.2, 0.3, 0.1]
    commands[:, 6] = [0, 9, 0, 9, 0]  # a gripper is no joint
    found = motion(list(commands), hz=10.0)
    assert found["jump"] == pytest.approx(0.2)
    assert found["acceleration_p95"] == pytest.approx(np.quantile([0.0, 0.0, 30.0], 0.95))


def test_intervals_are_wilson_s_and_hold_the_mean():
    episodes = [{"success": i < 8, "jump": i / 10, "acceleration_p95": 1.0, "steps": 9} for i in range(10)]
    found = summary(episodes)
    assert found["success"] == 8
    np.testing.assert_allclose(found["success_interval"], [0.4902, 0.9433], atol=2e-4)
    low, high = found["jump_interval"]
    assert found["jump"] == pytest.approx(0.45)
    assert low < 0.45 < high
    assert "acceleration_p95_interval" not in found
