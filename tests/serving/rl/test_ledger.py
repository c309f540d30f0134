"""The ledger that server and trainer share: what its events come to, from several processes, after kills and full disks."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from syvla.serving.rl.ledger import (
    ABORTED,
    AWAITING,
    CLAIMED,
    CONSUMED,
    DISCARDED,
    OPEN,
    SEALED,
    SET_ASIDE,
    Ledger,
)

ROOT = Path(__file__).parents[3]


def states(ledger):
    return {name: entry.state for name, entry in ledger.read().rollouts.items()}


def labeled(ledger, *names):
    for name in names:
        ledger.write("begin", episode_id=name, policy_version="a")
        ledger.write("end", episode_id=name)
        ledger.write("reward", episode_id=name, reward=1, timed_out=None)


def test_a_rollout_from_its_beginning_to_its_use(tmp_path):
    ledger, other = Ledger(tmp_path), Ledger(tmp_path)
    for event, facts, state in (
        ("begin", {"policy_version": "a"}, OPEN),
        ("end", {}, AWAITING),
        ("reward", {"reward": 0, "timed_out": True}, SEALED),
        ("discard", {"why": "nobody knows"}, DISCARDED),
        ("restore", {}, SEALED),
        ("set_aside", {"why": "too old"}, SET_ASIDE),
        ("restore", {}, SEALED),
    ):
        ledger.write(event, episode_id="one", **facts)
        assert states(other) == {"one": state}
    entry = other.read().rollouts["one"]
    assert (entry.reward, entry.timed_out, entry.accepted, entry.policy_version) == (0, True, True, "a")
    ledger.claim(3, ["one"])
    assert (states(other)["one"], other.read().rollouts["one"].update) == (CLAIMED, 3)
    ledger.release(["one"], "killed")
    assert states(other)["one"] == SEALED
    ledger.consume(3, ["one"])
    assert (states(other)["one"], other.read().updates) == (CONSUMED, 4)
    assert states(Ledger(tmp_path)) == {"one": CONSUMED}, "from the file alone"


def test_a_rollout_that_was_claimed_without_a_label_waits_for_it_again(tmp_path):
    """By a trainer that imitates alone. A label that came meanwhile stays."""
    ledger = Ledger(tmp_path)
    for name in ("one", "two"):
        ledger.write("begin", episode_id=name, policy_version="a")
        ledger.write("end", episode_id=name)
    ledger.claim(0, ["one", "two", "of a recording that the server does not know"])
    ledger.write("reward", episode_id="two", reward=1, timed_out=None)
    assert set(states(ledger).values()) == {CLAIMED}
    ledger.release(list(states(ledger)), "killed")
    assert list(states(ledger).values()) == [AWAITING, SEALED, SEALED]


def test_a_rollback_goes_back_in_the_line_of_policies_and_the_run_goes_on_from_there(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.read().policy_version is None
    for number in range(4):
        ledger.announce(number, f"h{number}", number - 1 if number else None)
    ledger.write("rollback", version=1, policy_version="h1")
    assert (ledger.read().lineage, ledger.read().policy_version, ledger.read().rollbacks) == ([0, 1], "h1", [1])
    ledger.announce(4, "h4", 1)
    assert (ledger.read().lineage, ledger.read().versions[4]) == ([0, 1, 4], "h4")
    ledger.write("rollback", version=3, policy_version="h3")
    assert ledger.read().lineage == [0, 1, 2, 3], "also forward again"
    ledger.write("resume", version=1, policy_version="h1", updates=1)
    assert (ledger.read().versions, ledger.read().lineage, ledger.read().updates) == (["h0", "h1"], [0, 1], 1)


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        ("rollback", {"version": 7, "policy_version": "h7"}),
        ("rollback", {"version": 0, "policy_version": "other"}),
        ("announce", {"version": 2, "policy_version": "h2", "parent": 0}),
        ("announce", {"version": 1, "policy_version": "h1", "parent": 1}),
        ("claim", {"update": 0}),
    ],
)
def test_an_event_that_makes_no_sense_never_gets_into_the_file(tmp_path, event, facts):
    ledger = Ledger(tmp_path)
    ledger.announce(0, "h0")
    before = ledger.path.read_bytes()
    with pytest.raises((ValueError, KeyError)):
        ledger.write(event, **facts)
    assert ledger.path.read_bytes() == before


def test_lines_that_a_crash_cut_off_are_passed_over(tmp_path):
    labeled(Ledger(tmp_path), "one")
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes() + b'{"event": "abort", "episode_id": "one"')
    ledger = Ledger(tmp_path)
    assert (ledger.torn, states(ledger)) == (1, {"one": SEALED})
    labeled(ledger, "two")
    assert states(Ledger(tmp_path)) == {"one": SEALED, "two": SEALED}


def count_up(run, times):
    """Each transaction reads a number and writes the next one; without the lock numbers would come twice."""
    ledger = Ledger(run)
    for _ in range(times):
        with ledger.exclusive() as known:
            ledger.consume(known.updates, [f"rollout {known.updates}"])


def test_two_processes_take_turns(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=count_up, args=(tmp_path, 20)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    known = Ledger(tmp_path).read()
    assert known.updates == len(known.names(CONSUMED)) == 40
    updates = [json.loads(line)["update"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert updates == list(range(40))


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from syvla.serving.rl.ledger import Ledger
        with Ledger(Path(sys.argv[1])).exclusive():
            print("held", flush=True)
            time.sleep(600)
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    labeled(Ledger(tmp_path), "one")
    assert states(Ledger(tmp_path)) == {"one": SEALED}


FULL = """
import resource, signal, sys
from pathlib import Path
from syvla.serving.rl.ledger import Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger(Path(sys.argv[1]))
ledger.write("begin", episode_id="one", policy_version="a")
size = ledger.path.stat().st_size
for room in range(60):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
    try:
        ledger.write("abort", episode_id="one", why="")
    except OSError:
        continue
    print("written with", room)
    break
else:
    print("refused", ledger.path.stat().st_size == size)
print(ledger.read().rollouts["one"].state)
"""


def test_an_event_that_the_disk_did_not_take_whole_does_not_count(tmp_path):
    """Whatever part of the line fitted, the next writer finds the file as it was."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split("\n")[:2] == ["refused True", OPEN], done.stderr
    ledger = Ledger(tmp_path)
    assert (ledger.torn, states(ledger)) == (0, {"one": OPEN})
    ledger.write("abort", episode_id="one", why="")
    assert states(ledger) == {"one": ABORTED}
