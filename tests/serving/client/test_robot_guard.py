"""What stands between commands and motors: the stop has the last word, whoever calls it and whenever."""

import threading

import numpy as np
import pytest

from syvla.serving.client.chunk_executor import ChunkExecutor
from syvla.serving.client.command_log import CommandLog, limited_again, read_log
from syvla.serving.client.robot_guard import EmergencyStop, EmergencyStopped, RobotGuard, stop_on
from syvla.serving.client.silence import Watchdog
from syvla.serving.contract.action_limits import ActionLimits

IMAGES = {"head": np.zeros((4, 4, 3), np.uint8)}
STATE = np.zeros(2, np.float32)


class Motors:
    """Notes what happens to it, in order."""

    def __init__(self):
        self.seen = []

    def send(self, command):
        self.seen.append(float(command[0]))

    def stop(self, reason):
        self.seen.append("stop")


def test_after_a_stop_from_another_thread_nothing_is_sent_until_a_person_releases_it():
    motors = Motors()
    emergency = EmergencyStop(motors.stop)
    guard = RobotGuard(motors.send, emergency=emergency)
    assert guard.command(np.ones(2), state=STATE)
    thread = threading.Thread(target=emergency.trigger, args=("button",))
    thread.start()
    thread.join()
    for _ in range(3):
        with pytest.raises(EmergencyStopped, match="button"):
            guard.command(np.full(2, 2.0), state=STATE)
    assert motors.seen == [1.0, "stop"]
    emergency.release()
    guard.command(np.full(2, 3.0), state=STATE)
    assert motors.seen == [1.0, "stop", 3.0]


def test_a_stop_while_a_command_is_on_its_way_does_not_wait_and_still_comes_last():
    motors = Motors()
    emergency = EmergencyStop(motors.stop)
    sending, go_on = threading.Event(), threading.Event()

    def slow_send(command):
        sending.set()
        assert go_on.wait(60)
        motors.send(command)

    guard = RobotGuard(slow_send, emergency=emergency)
    failed = []

    def loop():
        try:
            guard.command(np.ones(2), state=STATE)
        except EmergencyStopped as error:
            failed.append(str(error))

    thread = threading.Thread(target=loop)
    thread.start()
    assert sending.wait(60)
    emergency.trigger("collision")  # returns though the command is still on its way
    assert motors.seen == ["stop"]
    go_on.set()
    thread.join()
    assert motors.seen == ["stop", 1.0, "stop"]
    assert failed == ["collision"]


def test_a_watched_condition_stops_the_robot_and_so_does_its_own_failure():
    for condition, reason in ((lambda: "light curtain", "light curtain"), (lambda: 1 / 0, "ZeroDivisionError")):
        motors = Motors()
        emergency = EmergencyStop(motors.stop)
        stop_on(emergency, condition).join(60)
        assert reason in emergency.reason
        assert motors.seen == ["stop"]


@pytest.mark.parametrize("bad", [3.1, -3.1, np.nan, np.inf])
def test_too_large_an_effort_stops_before_the_command(bad):
    motors, effort = Motors(), [1.0, 3.0]
    emergency = EmergencyStop(motors.stop)
    guard = RobotGuard(
        motors.send, emergency=emergency, measure_effort=lambda: effort, max_effort=[2.0, 3.0], effort_steps=2
    )
    guard.command(np.ones(2), state=STATE)
    effort[1] = bad
    guard.command(np.full(2, 2.0), state=STATE)  # one step may be a spike
    with pytest.raises(EmergencyStopped, match="effort 1 is"):
        guard.command(np.full(2, 3.0), state=STATE)
    assert motors.seen == [1.0, 2.0, "stop"]


def test_efforts_of_another_number_and_settings_without_effect_are_refused():
    motors = Motors()
    guard = RobotGuard(motors.send, measure_effort=lambda: [1.0], max_effort=[1.0, 1.0])
    with pytest.raises(ValueError, match="measure_effort: expected 2 numbers"):
        guard.command(np.ones(2), state=STATE)
    for options in ({"max_effort": [1.0]}, {"measure_effort": list}, {"effort_steps": 3}):
        with pytest.raises(ValueError, match="effort"):
            RobotGuard(motors.send, **options)
    assert motors.seen == []


class Policy:
    metadata = None

    def act(self, images, state, prompt, **extras):
        return {"actions": np.array([[0.1, 0.0], [0.9, -0.7], [0.3, 0.2]], np.float32) + state[:2]}

    def reset(self):
        """Nothing is kept."""


def test_a_dry_run_sends_nothing_and_its_log_replays_to_the_bit(tmp_path):
    motors, limits = Motors(), {"max_step": [0.25, 0.5], "high": [0.8, None]}
    executor = ChunkExecutor(Policy(), 3, watchdog=Watchdog(max_wait_s=60.0), limits=limits)
    commands = []
    with CommandLog(tmp_path / "log.jsonl") as log:
        guard = RobotGuard(motors.send, dry_run=True, log=log)
        for step in range(9):
            if step == 6:
                executor.reset()
                log.new_episode()
            command = executor.step(IMAGES, STATE + step / 10, "lift")
            assert not guard.command(command, state=STATE + step / 10, prompt="lift", report=executor.report)
            commands.append(command)
    executor.close()
    assert motors.seen == []
    steps = list(read_log(tmp_path / "log.jsonl"))
    np.testing.assert_array_equal([step.command for step in steps], commands)
    assert [step.new_episode for step in steps] == [i in (0, 6) for i in range(9)]
    assert any(step.limits for step in steps)
    again = list(limited_again(tmp_path / "log.jsonl", ActionLimits.of(limits, 2)))
    np.testing.assert_array_equal([command for _, command, _ in again], commands)
    tighter = list(limited_again(tmp_path / "log.jsonl", ActionLimits.of({"max_step": [0.01, 0.01]}, 2)))
    assert np.abs(np.diff([command for _, command, _ in tighter], axis=0)).max() <= 0.01 + 1e-6
    with pytest.raises(FileExistsError):
        CommandLog(tmp_path / "log.jsonl")


def test_a_log_that_a_crash_cut_off_is_read_up_to_there_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    with CommandLog(path) as log:
        for _ in range(3):
            log.write(np.ones(2), sent=True, state=STATE, prompt="lift")
    text = path.read_text()
    path.write_text(text[:-20])
    assert len(list(read_log(path))) == 2
    path.write_text(text.replace('"sent": true', '"sent": tru', 1))
    with pytest.raises(ValueError, match="line 1: expected a logged step"):
        list(read_log(path))
    path.write_text(text)
    with pytest.raises(ValueError, match="actions before limits"):
        list(limited_again(path, ActionLimits.of(None, 2)))
