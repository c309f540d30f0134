"""Query states in the background: the newest observation wins, ages are true, bounds are kept, sessions stay apart."""

import threading
import time
from types import SimpleNamespace

import pytest

from syvla.serving.policies.query_refresher import QueryInput, QueryRefresher


class SlowHalf:
    """States are (observation, basis); each computation waits for a permit."""

    def __init__(self, permits: int = 0) -> None:
        self.permits, self.batches = threading.Semaphore(permits), []

    def __call__(self, batch):
        self.batches.append([one.observation for one in batch])
        assert self.permits.acquire(timeout=30)
        if any(one.observation == "bad" for one in batch):
            raise ValueError("images: expected a picture, got a bad one")
        return [(one.observation, one.basis) for one in batch]

    def allow(self, count: int = 1) -> None:
        self.permits.release(count)

    def wait_for(self, count: int) -> None:
        until = time.monotonic() + 30
        while len(self.batches) < count:
            assert time.monotonic() < until
            time.sleep(0.002)


def ask(refresher, observation, session="robot", basis="lift", timeout=30.0):
    return refresher.newest(refresher.submit(QueryInput(session, observation, basis)), timeout)


def ask_all(refresher, observed):
    tickets = [refresher.submit(one) for one in observed]
    return [refresher.newest(ticket, 30)[0] for ticket in tickets]


def test_a_call_takes_the_newest_states_and_the_thread_the_newest_observation():
    slow = SlowHalf(permits=1)
    refresher = QueryRefresher(slow)
    states, age = ask(refresher, 1)  # the first one waits
    assert (states, age.calls) == ((1, "lift"), 0)
    assert ask(refresher, 2)[0] == (1, "lift")
    slow.wait_for(2)  # the thread works on observation 2
    assert [ask(refresher, observation)[0] for observation in (3, 4)] == [(1, "lift")] * 2
    states, age = ask(refresher, 5)
    assert (states, age.calls) == ((1, "lift"), 4)
    slow.allow()
    slow.wait_for(3)
    assert slow.batches == [[1], [2], [5]]  # 3 and 4 were dropped
    states, age = ask(refresher, 6)
    assert (states, age.calls) == ((2, "lift"), 4)
    slow.allow(100)
    refresher.close()


def test_ages_are_seconds_since_the_observation():
    slow = SlowHalf(permits=1)
    refresher = QueryRefresher(slow)
    ask(refresher, 1)
    time.sleep(0.1)
    age = ask(refresher, 2)[1]
    assert 0.1 <= age.seconds < 30
    slow.allow(100)
    refresher.close()


@pytest.mark.parametrize("bound", [{"max_age": 1000.0}, {"max_age_calls": 1}])
def test_a_bound_on_the_age_turns_into_a_wait(bound, monkeypatch):
    later = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later)
    monkeypatch.setattr("syvla.serving.policies.query_refresher.time", clock)
    slow = SlowHalf(permits=1)
    refresher = QueryRefresher(slow, **bound)
    ask(refresher, 1)
    assert ask(refresher, 2)[0] == (1, "lift")
    slow.wait_for(2)
    later = 2000.0
    with pytest.raises(TimeoutError, match="VLM did not answer in time"):
        ask(refresher, 3, timeout=0.1)
    threading.Timer(0.1, slow.allow, [100]).start()
    states, age = ask(refresher, 4)
    assert age.calls <= bound.get("max_age_calls", 0)
    assert states[0] == 4 - age.calls
    refresher.close()


def test_another_instruction_is_never_answered_with_the_states_of_the_last():
    slow = SlowHalf(permits=1)
    refresher = QueryRefresher(slow)
    ask(refresher, 1)
    ask(refresher, 2)
    slow.wait_for(2)  # works on observation 2 with the old instruction
    threading.Timer(0.1, slow.allow, [100]).start()
    assert ask(refresher, 3, basis="place")[0] == (3, "place")
    assert ask(refresher, 4, basis="push")[0] == (4, "push")
    refresher.close()


def test_sessions_share_batches_but_no_states():
    slow = SlowHalf(permits=100)
    refresher = QueryRefresher(slow, max_sessions=3)
    observed = [QueryInput(f"robot {robot}", robot, "lift", group=robot % 2) for robot in range(3)]
    assert ask_all(refresher, observed) == [(robot, "lift") for robot in range(3)]
    assert sorted(robot for batch in slow.batches for robot in batch) == [0, 1, 2]
    assert all(len({robot % 2 for robot in batch}) == 1 for batch in slow.batches), "groups are computed apart"
    ask(refresher, 9, session="robot 3")
    assert len(refresher) == 3  # robot 0 was silent longest
    assert ask(refresher, 7, session="robot 0")[0] == (7, "lift")
    refresher.drop("robot 0")
    assert ask(refresher, 8, session="robot 0")[0] == (8, "lift")
    refresher.close()


def test_silent_sessions_are_dropped():
    refresher = QueryRefresher(SlowHalf(permits=100), idle_seconds=0.05)
    ask(refresher, 1, session="a")
    time.sleep(0.1)
    ask(refresher, 1, session="b")
    assert len(refresher) == 1
    refresher.close()


def test_a_failure_reaches_whoever_waits_for_it_and_nobody_else():
    slow = SlowHalf(permits=100)
    refresher = QueryRefresher(slow)
    with pytest.raises(ValueError, match="expected a picture"):
        ask(refresher, "bad")
    assert ask(refresher, 2)[0] == (2, "lift")
    results = ask_all(refresher, [QueryInput("robot", "bad", "lift"), QueryInput("other", 5, "lift")])
    assert results == [(2, "lift"), (5, "lift")]
    refresher.close()
    with pytest.raises(RuntimeError, match="closed"):
        ask(refresher, 6, session="new")


def test_states_that_nothing_refreshes_any_more_are_an_error_to_the_caller(monkeypatch):
    """By its age without being told a bound, and by failures in a row; a success makes all good again."""
    later = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later)
    monkeypatch.setattr("syvla.serving.policies.query_refresher.time", clock)
    slow = SlowHalf(permits=100)
    refresher = QueryRefresher(slow)
    ask(refresher, 1)
    assert ask(refresher, "bad")[0] == (1, "lift"), "one failure alone stops nobody"
    slow.wait_for(2)
    later = 11.0
    with pytest.raises(ValueError, match="expected a picture"):
        ask(refresher, "bad")
    refresher.close()

    slow = SlowHalf(permits=100)
    refresher = QueryRefresher(slow, max_age=None)
    ask(refresher, 1)
    for failure in range(1, 4):
        ask(refresher, "bad")
        slow.wait_for(1 + failure)
        until = time.monotonic() + 30
        while refresher._sessions["robot"].failures < failure:
            assert time.monotonic() < until
            time.sleep(0.002)
    for _ in range(2):
        with pytest.raises(ValueError, match="expected a picture"):
            ask(refresher, "bad")
    assert ask(refresher, 9)[0] == (9, "lift")
    assert ask(refresher, 10)[0][0] in (9, 10)
    refresher.close()


def test_sessions_that_wait_are_batched():
    slow = SlowHalf()
    refresher = QueryRefresher(slow, max_batch=2)
    tickets = [refresher.submit(QueryInput(f"robot {robot}", robot, "lift")) for robot in range(4)]
    slow.wait_for(1)
    slow.allow(100)
    assert [refresher.newest(ticket, 30)[0] for ticket in tickets] == [(robot, "lift") for robot in range(4)]
    assert len(slow.batches) <= 3
    assert max(map(len, slow.batches)) == 2
    refresher.close()


@pytest.mark.parametrize("how", ["dropped", "another instruction", "pushed out", "closed"])
def test_nobody_waits_for_a_session_that_is_no_more(how):
    """The thread would never get to its observation."""
    slow = SlowHalf()
    refresher = QueryRefresher(slow, max_sessions=2)
    busy = refresher.submit(QueryInput("other", 0, "lift"))
    slow.wait_for(1)
    waiting = refresher.submit(QueryInput("robot", 1, "lift"))
    if how == "dropped":
        refresher.drop("robot")
    if how == "another instruction":
        after = refresher.submit(QueryInput("robot", 2, "place"))
    if how == "pushed out":
        refresher.submit(QueryInput("other", 3, "lift"))
        after = refresher.submit(QueryInput("third", 2, "place"))
    if how == "closed":
        threading.Timer(0.1, slow.allow, [100]).start()
        refresher.close()
    with pytest.raises(RuntimeError if how == "closed" else ValueError, match=r"ask again|closed"):
        refresher.newest(waiting, 30)
    slow.allow(100)
    if how != "closed":
        assert refresher.newest(busy, 30)[0][1] == "lift"
    if how in ("another instruction", "pushed out"):
        assert refresher.newest(after, 30)[0] == (2, "place")
    refresher.close()
