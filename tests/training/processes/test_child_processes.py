"""Processes that belong together: whatever happens to one or to their starter, none is left and the end of a log is shown."""

import os
import signal
import subprocess
import sys
import time

import pytest

from syvla.training.processes.child_processes import ChildProcesses, environment

STARTER = """
import signal, sys, time
from pathlib import Path
from syvla.training.processes.child_processes import ChildProcesses
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
with ChildProcesses(Path(sys.argv[1]), grace_s=5) as children:
    for name in ("one", "two"):
        children.start(name, ["bash", "-c", "sleep 1000 & echo $$ $!; wait"])
    time.sleep(1000)
"""


def alive(pid):
    """Whether a process still runs; what has ended and only waits for its parent does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def pids_in(folder):
    return [int(pid) for log in folder.glob("*.log") for pid in log.read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_process_that_started_it(tmp_path, number):
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)], env=environment(), stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(pids_in(tmp_path)) == 4)
    pids = pids_in(tmp_path)
    assert all(map(alive, pids))
    with pytest.raises(ValueError, match="in use by the processes of another command"):
        ChildProcesses(tmp_path, wait_s=0).__enter__()
    starter.send_signal(number)
    starter.wait(60)
    with ChildProcesses(tmp_path):  # waits until the guard has ended them
        assert not any(map(alive, pids)), "children and what they started"


def test_a_process_that_ignores_sigterm_is_killed(tmp_path):
    with ChildProcesses(tmp_path, grace_s=0.2) as children:
        child = children.start("deaf", ["bash", "-c", "trap '' TERM; echo ready; while true; do sleep 0.1; done"])
        wait_for(lambda: child.log.read_text() == "ready\n")
    assert child.process.returncode == -signal.SIGKILL


def test_a_report_shows_how_a_process_ended_and_what_it_said_last(tmp_path):
    (tmp_path / "worker.log").write_text("of an earlier start\n")
    with ChildProcesses(tmp_path) as children:
        child = children.start("worker", ["bash", "-c", "for i in $(seq 40); do echo line $i; done; exit 7"])
        child.process.wait()
        report = child.report()
        assert report.startswith(f"worker: the process ended (exit status 7). The end of {tmp_path / 'worker.log'}:")
        assert report.endswith("line 39\n    line 40")
        assert "line 15\n" not in report
        killed = children.start("worker", ["sleep", "1000"])
        os.kill(killed.process.pid, signal.SIGKILL)
        killed.process.wait()
        assert "(signal SIGKILL)" in killed.report()
        assert "earlier" not in killed.report()
        assert "line 40" not in killed.report()
