"""Chunks to commands: what runs, what is asked, and what happens where the policy is silent, late, wrong or told anew."""

import asyncio
import math
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syvla.serving.client.chunk_executor import AsyncChunkExecutor, ChunkExecutor
from syvla.serving.client.retries import PolicyError, Unreachable
from syvla.serving.client.silence import Silence, Watchdog
from syvla.serving.contract.action_limits import UnsafeActions
from syvla.serving.contract.answer_delay import MeasuredDelay
from syvla.serving.contract.chunk_seams import Seams

IMAGES = {"head": np.arange(48, dtype=np.uint8).reshape(4, 4, 3)}
PATIENT = Watchdog(max_wait_s=60.0)
QUICK = {"max_wait_s": 0.05, "retry_s": 0.0}


class Recorder:
    """A policy whose action is (decision, step); notes what it was asked."""

    def __init__(self, steps: int = 8) -> None:
        self.steps, self.asked, self.resets = steps, [], 0
        self.free = threading.Event()
        self.free.set()

    def act(self, images, state, prompt, **extras):
        self.asked.append((int(state[0]), extras))
        assert self.free.wait(120)
        return {"actions": np.array([[len(self.asked) - 1, step] for step in range(self.steps)], np.float32)}

    def reset(self) -> None:
        self.resets += 1


def test_chunks_are_executed_up_to_the_next_request():
    client = Recorder()
    executor = ChunkExecutor(client, 3, watchdog=PATIENT)
    actions = [executor.step(IMAGES, np.array([step]), "lift").tolist() for step in range(7)]
    assert actions == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0]]
    assert client.asked == [(0, {}), (3, {"executed_steps": 3}), (6, {"executed_steps": 3})]
    executor.reset()
    assert (client.resets, executor.last_reply) == (1, None)
    assert executor.step(IMAGES, np.array([7]), "lift").tolist() == [3, 0]


def answered(executor: ChunkExecutor) -> None:
    """Waits until the answer to a pending request is there, as it is within two control periods of a real robot."""
    if executor._pending is not None:
        executor._pending.exception(timeout=60)


def test_with_prefetch_the_old_chunk_goes_on_and_the_new_one_is_entered_in_time():
    client = Recorder()
    executor = ChunkExecutor(client, 4, prefetch=2, watchdog=PATIENT)
    actions = []
    for step in range(11):
        actions.append(executor.step(IMAGES, np.array([step]), "lift").tolist())
        answered(executor)
    executor.close()
    old, new, newer = [[0, step] for step in range(6)], [[1, step] for step in range(2, 6)], [[2, 2]]
    assert actions == old + new + newer
    (_, first), (observed, second), (again, third) = client.asked
    assert (first, observed, again) == ({}, 4, 8)
    assert (second["executed_steps"], second["delay_steps"]) == (4, 2)
    np.testing.assert_array_equal(second["prev_chunk"], [[0, step] for step in range(4, 8)])
    np.testing.assert_array_equal(third["prev_chunk"], [[1, step] for step in range(4, 8)])
    assert executor.seam == 4.0  # step 2 of chunk 2 where step 6 of chunk 1 would have come


def test_a_late_answer_is_waited_for_only_when_the_old_chunk_has_run_out():
    client = Recorder(steps=6)
    executor = ChunkExecutor(client, 3, prefetch=1, watchdog=PATIENT)
    actions = [executor.step(IMAGES, np.array([0]), "lift").tolist()]
    client.free.clear()
    actions += [executor.step(IMAGES, np.array([step]), "lift").tolist() for step in range(1, 6)]
    threading.Timer(0.1, client.free.set).start()
    actions.append(executor.step(IMAGES, np.array([6]), "lift").tolist())
    assert actions == [[0, step] for step in range(6)] + [[1, 3]]
    executor.close()
    with pytest.raises(ValueError, match="prefetch < replan_steps"):
        ChunkExecutor(client, 3, prefetch=3)


class Policy:
    """Answers chunks that a test sets; a test also sets how long an answer takes, or that it fails."""

    def __init__(self, *chunks, metadata=None, **reply) -> None:
        self.chunks, self.metadata, self.reply = list(chunks), metadata or {}, reply
        self.asked: list[tuple[str, dict]] = []
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()

    def act(self, images, state, prompt, **extras):
        self.asked.append((prompt, extras))
        error, chunk = self.error, self.chunks[min(len(self.asked), len(self.chunks)) - 1]
        assert self.free.wait(60)
        if error is not None:
            raise error
        return {"actions": np.array(chunk, np.float32).reshape(len(chunk), -1), **self.reply}

    def reset(self) -> None:
        """Nothing is kept."""


def stepped(executor, prompt="lift", state=0.0) -> float:
    return float(executor.step(IMAGES, np.array([state], np.float32), prompt)[0])


def metadata_of(**limits):
    return {
        "embodiments": {"arm": {"action_dim": 1, "control_hz": 10.0, "limits": limits}},
        "default_embodiment": "arm",
    }


# ---------------------------------------------------------------------- seams


def ran(executor, policy, steps):
    commands = []
    for _ in range(steps):
        commands.append(stepped(executor))
        answered(executor)
    executor.close()
    return commands, [extras for _, extras in policy.asked]


def test_published_chunking_asks_for_guidance_and_the_identity_form_for_none():
    for seams, weight in (("rtc", 5.0), (Seams("rtc", max_guidance_weight=2.0), 2.0), ("rtc_identity", None)):
        policy = Policy(range(8))
        _, asked = ran(ChunkExecutor(policy, 4, prefetch=2, seams=seams, watchdog=PATIENT), policy, 6)
        assert asked[1].get("max_guidance_weight") == weight
        assert asked[1]["delay_steps"] == 2
    policy = Policy(range(8))
    _, asked = ran(ChunkExecutor(policy, 4, prefetch=2, seams="blend", watchdog=PATIENT), policy, 6)
    assert asked[1] == {"executed_steps": 4}
    policy = Policy(range(8))
    _, asked = ran(ChunkExecutor(policy, 4, seams="rtc", watchdog=PATIENT), policy, 6)
    assert (asked[1]["delay_steps"], len(asked[1]["prev_chunk"])) == (0, 4)  # the robot waits, and yet goes on smoothly


def test_a_robot_blends_and_ensembles_over_delayed_chunks():
    policy = Policy([0.0] * 8, [10.0] * 8)
    commands, _ = ran(
        ChunkExecutor(policy, 4, prefetch=1, seams=Seams("blend", blend_steps=3), watchdog=PATIENT), policy, 9
    )
    np.testing.assert_allclose(commands, [0, 0, 0, 0, 0, 2.5, 5, 7.5, 10])
    policy = Policy([0.0] * 8, [10.0] * 8, [20.0] * 8)
    ensemble = Seams("ensemble", decay=0.0)
    commands, _ = ran(ChunkExecutor(policy, 2, prefetch=1, seams=ensemble, watchdog=PATIENT), policy, 8)
    np.testing.assert_allclose(commands, [0, 0, 0, 5, 5, 10, 10, 12.5])


def test_chunks_too_short_for_the_seams_are_refused_before_the_robot_moves():
    for seams, prefetch in (("blend", 2), ("ensemble", 2), ("rtc", 0)):
        steps = 6 if prefetch else 4
        executor = ChunkExecutor(Policy([0.0] * steps), 4, prefetch=prefetch, seams=seams, watchdog=PATIENT)
        with pytest.raises(ValueError, match=f"seams: '{seams}' has an effect where chunks overlap"):
            stepped(executor)


def test_a_new_instruction_ends_the_old_chunks_say():
    policy = Policy([0.0] * 8, [10.0] * 8)
    executor = ChunkExecutor(policy, 4, seams="ensemble", watchdog=PATIENT)
    assert [stepped(executor), stepped(executor), stepped(executor, "drop")] == [0.0, 0.0, 10.0]


@pytest.mark.parametrize("latency", [1, 3, 7])
def test_the_delay_is_measured_in_control_steps(latency):
    policy = Policy(range(40))
    executor = ChunkExecutor(
        policy, 6, prefetch=MeasuredDelay(most=5), watchdog=Watchdog(max_wait_s=0.0, max_age_s=60.0)
    )
    stepped(executor)
    asked_at = None
    for step in range(1, 50):
        if asked_at is not None and step - asked_at == latency:
            policy.free.set()
            answered(executor)
            asked_at = None
        before = executor.counts["requests"]
        if asked_at is None:
            policy.free.clear()
        stepped(executor)
        asked_at = step if executor.counts["requests"] > before else asked_at
    policy.free.set()
    executor.close()
    assert executor.prefetch == min(5, latency)
    assert policy.asked[-1][1]["delay_steps"] == executor.prefetch


# ---------------------------------------------------------------------- limits over what really runs


@pytest.mark.parametrize("jerk", [None, 0.08])
@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.floats(-9, 9, width=32), min_size=6, max_size=6), min_size=1, max_size=5),
    st.sampled_from([0, 2]),
    st.lists(
        st.sampled_from(["step", "step", "step", "fail", "new instruction", "new episode"]), min_size=8, max_size=40
    ),
    st.sampled_from(["finish", "hold", "slow"]),
)
def test_limits_hold_over_seams_failures_new_instructions_and_episodes(jerk, chunks, prefetch, events, on_silence):
    limits = {"low": [-5.0], "high": [5.0], "max_step": [0.5], "max_acceleration": [0.2], "max_jerk": [jerk]}
    policy = Policy(*chunks, metadata=metadata_of(**limits))
    executor = ChunkExecutor(
        policy, 3, prefetch=prefetch, watchdog=Watchdog(max_wait_s=60.0, retry_s=0.0, on_silence=on_silence)
    )
    commands, texts = [stepped(executor)], 0
    for event in events:
        policy.error = ConnectionError("gone") if event == "fail" and executor._moved else None
        texts += event == "new instruction"
        if event == "new episode":
            executor.reset()
        commands.append(stepped(executor, f"lift {texts}"))
    policy.error = None
    executor.close()
    assert np.abs(commands).max() <= 5
    assert np.abs(np.diff(commands)).max() <= 0.5 + 1e-5
    assert np.abs(np.diff(commands, 2)).max(initial=0) <= 0.2 + 1e-5
    assert jerk is None or np.abs(np.diff(commands, 3)).max(initial=0) <= jerk + 1e-5
    assert executor.counts["steps"] == len(commands)
    assert executor.counts["gave_way"] == 0


def test_a_seam_is_within_the_rate_that_the_server_names_and_is_reported():
    policy = Policy([0.0] * 4, [1.0] * 4, metadata=metadata_of(max_step=[0.05]))
    executor = ChunkExecutor(policy, 4, watchdog=PATIENT)
    commands = [stepped(executor) for _ in range(8)]
    np.testing.assert_allclose(commands, [0, 0, 0, 0, 0.05, 0.1, 0.15, 0.2], atol=1e-6)
    assert executor.report.limits == ["rate limit: action 0, 1 of 1 steps, by up to 0.8"]
    assert executor.counts["limited"] == 4


def test_the_callers_limits_and_the_servers_hold_at_once_and_the_state_is_the_last_word():
    policy = Policy([3.0] * 4, metadata=metadata_of(high=[2.0]))
    executor = ChunkExecutor(policy, 4, watchdog=PATIENT, limits={"max_relative_target": [0.25]})
    assert [stepped(executor, state=state) for state in (0.0, 0.25, 1.9)] == [0.25, 0.5, 2.0]
    policy = Policy([3.0] * 4, metadata=metadata_of(high=[2.0]))
    assert stepped(ChunkExecutor(policy, 4, watchdog=PATIENT)) == 2.0


def test_actions_without_limits_are_passed_on_as_they_came():
    policy = Policy([0.1] * 4)
    policy.act = lambda *_, **__: {"actions": np.full((4, 2), 0.1)}
    action = ChunkExecutor(policy, 4, watchdog=PATIENT).step(IMAGES, np.zeros(5), "lift")
    assert (action.dtype, action.tolist()) == (np.float64, [0.1, 0.1])


# ---------------------------------------------------------------------- silence


def silent_after(first_chunk, steps, watchdog, replan=4):
    """Commands of an executor whose policy answers once, and then no more."""
    policy = Policy(first_chunk)
    executor = ChunkExecutor(policy, replan, watchdog=watchdog)
    commands = [stepped(executor)]
    policy.free.clear()
    started = time.monotonic()
    reports = []
    for _ in range(steps - 1):
        commands.append(stepped(executor))
        reports.append(executor.report)
    assert time.monotonic() - started < 10, "every step ends within its time, and 0.05 s each were allowed"
    policy.free.set()
    return commands, reports, executor


def test_a_silent_policy_s_chunk_is_finished_and_its_last_command_held():
    commands, reports, executor = silent_after(range(6), 9, Watchdog(**QUICK))
    assert commands == [0, 1, 2, 3, 4, 5, 5, 5, 5]
    assert [report.source for report in reports] == ["chunk"] * 5 + ["hold"] * 3
    assert (reports[2].reason, reports[2].silent_s) == ("", 0.0)
    assert reports[-1].reason.startswith("no answer after")
    assert reports[-1].silent_s > reports[-2].silent_s > 0
    assert (executor.counts["hold"], executor.counts["requests"]) == (3, 2)


def test_a_robot_holds_or_slows_down_or_does_what_a_function_says():
    assert silent_after(range(8), 7, Watchdog(on_silence="hold", **QUICK))[0] == [0, 1, 2, 3, 3, 3, 3]
    slow = silent_after(range(8), 10, Watchdog(on_silence="slow", stop_steps=4, **QUICK))[0]
    assert slow == [0, 1, 2, 3, 3.75, 4.25, 4.5, 4.5, 4.5, 4.5]
    zero = silent_after([2.0] * 8, 7, Watchdog(on_silence="slow", rest="zero", stop_steps=2, **QUICK))[0]
    assert zero == [2, 2, 2, 2, 1, 0, 0]
    told: list[Silence] = []

    def retreat(silence):
        told.append(silence)
        return silence.last - 1

    assert silent_after(range(6), 6, Watchdog(on_silence=retreat, **QUICK))[0] == [0, 1, 2, 3, 2, 1]
    assert told[0].rest.tolist() == [[4], [5]]
    assert told[0].reason.startswith("no answer after")


def test_a_failed_prefetch_raises_nothing_and_the_old_chunk_goes_on():
    policy = Policy(range(8), [100.0] * 8)
    executor = ChunkExecutor(policy, 4, prefetch=2, watchdog=Watchdog(max_wait_s=60.0, retry_s=0.0))
    commands = [stepped(executor) for _ in range(4)]
    policy.error = Unreachable("gone")
    for _ in range(3):
        commands.append(stepped(executor))
        answered(executor)
    assert commands == list(range(7))
    assert executor.counts["failures"] >= 2
    assert executor.report.reason == "Unreachable: gone"
    executed = [extras["executed_steps"] for _, extras in policy.asked[1:]]
    assert executed == sorted(executed)
    assert executed[0] == 4
    assert executed[-1] <= 7, "nothing counts twice"
    policy.error = None
    for _ in range(4):
        commands.append(stepped(executor))
        answered(executor)
    assert commands[-1] == 100
    assert executor.report.reason == ""


def test_the_first_failure_of_an_episode_reaches_the_caller():
    policy = Policy(range(4))
    policy.error = PolicyError("state: expected 14 numbers")
    executor = ChunkExecutor(policy, 4, watchdog=PATIENT)
    with pytest.raises(PolicyError, match="expected 14"):
        stepped(executor)
    policy.error = None
    assert stepped(executor) == 0
    silent = Policy(range(4))
    silent.free.clear()
    executor = ChunkExecutor(silent, 4, watchdog=Watchdog(first_wait_s=0.05))
    with pytest.raises(TimeoutError, match=r"no first chunk within 0.05 s \(no answer after"):
        stepped(executor)
    silent.free.set()


def test_a_late_answer_is_dropped_and_asked_for_anew():
    policy = Policy(range(4), [50.0] * 4, [60.0] * 4)
    executor = ChunkExecutor(policy, 4, watchdog=Watchdog(max_wait_s=0.02, max_age_s=0.3))
    commands = [stepped(executor) for _ in range(4)]
    policy.free.clear()
    commands.append(stepped(executor))
    time.sleep(0.4)
    policy.free.set()
    executor._pending.exception(timeout=60)
    commands.append(stepped(executor))
    assert "max_age_s is 0.3" in executor.report.dropped
    executor.watchdog = PATIENT
    commands.append(stepped(executor))
    assert commands == [0, 1, 2, 3, 3, 3, 60]
    assert executor.counts["dropped_late"] == 1


def test_a_chunk_and_query_states_that_are_too_old_do_not_run():
    policy = Policy(range(8), [50.0] * 8)
    executor = ChunkExecutor(policy, 8, watchdog=Watchdog(max_wait_s=60.0, max_age_s=0.2))
    assert stepped(executor) == 0
    time.sleep(0.3)
    assert stepped(executor) == 50
    policy = Policy(range(8), query_age=5.0)
    executor = ChunkExecutor(policy, 8, watchdog=Watchdog(max_wait_s=60.0))
    assert stepped(executor) == 0
    assert executor.report.query_age_s >= 5
    executor.watchdog = Watchdog(max_wait_s=60.0, max_query_age_s=4.0)
    executor._position = 8
    assert stepped(executor) == 0
    assert (executor.counts["dropped_query_age"], executor.report.source) == (1, "hold")


def test_numbers_that_are_not_finite_never_run():
    executor = ChunkExecutor(Policy([1.0, math.nan], [2.0, 2.0]), 2, watchdog=Watchdog(max_wait_s=60.0, retry_s=0.0))
    assert [stepped(executor) for _ in range(3)] == [1, 1, 2]
    assert executor.counts["refused"] == 1
    with pytest.raises(UnsafeActions):
        stepped(ChunkExecutor(Policy([math.nan]), 1, watchdog=PATIENT))


# ---------------------------------------------------------------------- instructions


@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_new_instruction_is_asked_for_at_once_and_continues_nothing(prefetch):
    policy = Policy(range(8), [50.0] * 8)
    executor = ChunkExecutor(policy, 6, prefetch=prefetch, watchdog=PATIENT)
    assert [stepped(executor), stepped(executor), stepped(executor, "stop")] == [0, 1, 50]
    assert policy.asked[1] == ("stop", {"executed_steps": 2})


def test_an_answer_to_the_old_instruction_that_is_under_way_is_dropped():
    policy = Policy(range(8), [50.0] * 8, [60.0] * 8)
    executor = ChunkExecutor(policy, 3, prefetch=2, watchdog=PATIENT)
    commands = [stepped(executor) for _ in range(3)]
    policy.free.clear()
    commands.append(stepped(executor))  # asks
    executor.watchdog = Watchdog(**QUICK)
    commands.append(stepped(executor, "stop"))
    assert executor.counts["dropped_instruction"] == 1
    assert "the instruction changed" in executor.report.dropped
    policy.free.set()
    executor.watchdog = PATIENT
    commands.append(stepped(executor, "stop"))
    assert commands == [0, 1, 2, 3, 3, 60]
    assert policy.asked[2] == ("stop", {"executed_steps": 1}), "one step ran since the dropped answer's observation"


def test_a_new_instruction_continues_the_old_chunk_where_asked_to():
    policy = Policy(range(8), [50.0] * 8)
    watchdog = Watchdog(max_wait_s=60.0, continue_across_instructions=True)
    executor = ChunkExecutor(policy, 6, prefetch=1, watchdog=watchdog)
    commands = [stepped(executor), stepped(executor), stepped(executor, "stop")]
    answered(executor)
    commands.append(stepped(executor, "stop"))
    assert commands == [0, 1, 2, 50]
    assert (policy.asked[1][0], policy.asked[1][1]["delay_steps"]) == ("stop", 1)


def test_an_asynchronous_executor_keeps_the_same_rules():
    class Slow(Policy):
        async def act(self, images, state, prompt, **extras):
            return await asyncio.to_thread(Policy.act, self, images, state, prompt, **extras)

    async def run() -> list[float]:
        policy = Slow(range(6), [50.0] * 6, metadata=metadata_of(max_step=[2.0]))
        executor = AsyncChunkExecutor(policy, 4, watchdog=Watchdog(on_silence="slow", stop_steps=4, **QUICK))

        async def act(prompt="lift") -> float:
            return float((await executor.step(IMAGES, np.zeros(1, np.float32), prompt))[0])

        commands = [await act()]
        policy.free.clear()
        commands += [await act() for _ in range(6)]
        policy.free.set()
        executor.watchdog = PATIENT
        commands.append(await act("stop"))
        await executor.close()
        assert executor.counts["dropped_instruction"] == 1
        return commands

    assert asyncio.run(run()) == [0, 1, 2, 3, 3.75, 4.25, 4.5, 6.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_age_s": 0}, "max_age_s: expected more than 0 seconds, got 0"),
        ({"on_silence": "explode"}, "on_silence: expected finish, hold, slow or a function, got 'explode'"),
        ({"rest": "first"}, "rest: expected last or zero"),
        ({"max_wait_s": -1}, "max_wait_s: expected at least 0"),
        ({"stop_steps": 0}, "stop_steps >= 1"),
    ],
)
def test_impossible_watchdogs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Watchdog(**changes)
