"""Sessions: which calls think, and how long a session is remembered."""

import pytest

from syvla.serving.server.sessions import MAX_SESSIONS, Session, SessionTable


@pytest.mark.parametrize(("think", "fresh"), [(False, "...."), (True, "TTTT"), (1, "TTTT"), (2, "T.T."), (3, "T..T")])
def test_every_kth_call_thinks(think, fresh):
    session, seen = Session("robot"), ""
    for call in range(4):
        now, thought = session.plan_thought(think, ("lift",))
        seen += "T" if now else "."
        session.answered(f"thought {call}" if now else thought, now, ("lift",))
    assert seen == fresh


def test_a_thought_holds_for_its_instruction_robot_and_policy_only():
    session = Session("robot")
    session.answered("reach", True, ("lift", "arm", "v1"))
    assert session.plan_thought(9, ("lift", "arm", "v1")) == (False, "reach")
    for other in (("drop", "arm", "v1"), ("lift", "leg", "v1"), ("lift", "arm", "v2")):
        assert session.plan_thought(9, other) == (True, None)
    session.forget_thought()
    assert session.plan_thought(9, ("lift", "arm", "v1")) == (True, None)


def test_silent_sessions_are_forgotten_and_connected_ones_never():
    table = SessionTable(timeout_s=0.0)
    table.get("silent")
    table.get("connected").connections = 1
    assert [session.name for session in table.expire()] == ["silent"]
    assert table.get("connected").connections == 1


def test_a_named_session_lives_as_long_as_its_connection():
    """A robot that stands still for minutes keeps its thought and its episode."""
    table = SessionTable(timeout_s=0.0)
    table.joined("connection")
    for _ in range(2):
        table.speaks_for("connection", "robot 7")
    assert table.expire() == []
    table.left("connection")
    assert len(table) == 1, "the connection's own session cannot be named again"
    assert [session.name for session in table.expire()] == ["robot 7"]


def test_the_number_of_sessions_is_bounded():
    table = SessionTable(timeout_s=1e9)
    for number in range(MAX_SESSIONS + 5):
        table.get(str(number))
    table.get("0")  # was heard of again
    gone = {session.name for session in table.expire()}
    assert gone == {"1", "2", "3", "4", "5"}
    assert len(table) == MAX_SESSIONS
