"""A person takes over from a policy in the middle of a chunk: what the robot is told, and what the server is."""

import asyncio
import threading

import numpy as np
import pytest

from syvla.serving.client.chunk_executor import AsyncChunkExecutor, ChunkExecutor
from syvla.serving.client.retries import PolicyError
from syvla.serving.client.silence import Watchdog

IMAGES = {"head": np.arange(48, dtype=np.uint8).reshape(4, 4, 3)}
PATIENT = Watchdog(max_wait_s=60.0)


class Person:
    """A policy whose action is (decision, step); notes requests and corrections, of which it does not take `lost`."""

    def __init__(self, lost=(), steps: int = 8) -> None:
        self.lost, self.steps, self.decisions = lost, steps, 0
        self.log: list[tuple] = []
        self.free = threading.Event()
        self.free.set()

    def act(self, images, state, prompt, **extras):
        assert self.free.wait(120)
        self.log.append(("act", int(state[0]), extras.get("executed_steps")))
        self.decisions += 1
        return {"actions": np.array([[self.decisions - 1, step] for step in range(self.steps)], np.float32)}

    def reset(self) -> None:
        """Nothing is kept."""

    def correct(self, images, state, prompt, action, **extras):
        assert self.free.wait(120)
        if int(state[0]) in self.lost:
            raise PolicyError("the disk is full")
        self.log.append(("correct", int(state[0]), extras.get("executed_steps"), action.tolist()))
        return {"observed": True}


def answered(executor: ChunkExecutor) -> None:
    """Waits until the answer to a pending request is there, as it is within two control periods of a real robot."""
    if executor._pending is not None:
        executor._pending.exception(timeout=60)


def at(step: int) -> np.ndarray:
    return np.array([step], np.float32)


def test_a_persons_commands_are_recorded_in_order_and_the_policy_is_asked_anew():
    client = Person()
    executor = ChunkExecutor(client, 6, watchdog=PATIENT)
    with pytest.raises(ValueError, match="correct: expected after the episode's first step of the policy"):
        executor.correct(IMAGES, at(0), "lift", np.zeros(2))
    executor.step(IMAGES, at(0), "lift")
    executor.step(IMAGES, at(1), "lift")
    done = [executor.correct(IMAGES, at(step), "lift", np.array([9.0, step])).tolist() for step in (2, 3)]
    assert (done, executor.report.source) == ([[9, 2], [9, 3]], "correction")
    assert executor.step(IMAGES, at(4), "lift").tolist() == [1, 0], "a new chunk from its first action"
    expected = [("act", 0, None), ("correct", 2, 2, [9, 2]), ("correct", 3, None, [9, 3]), ("act", 4, None)]
    assert client.log == expected
    assert (executor.counts["correction"], executor.counts["chunk"], executor.counts["steps"]) == (2, 3, 5)


def test_a_takeover_while_the_policy_is_asked_names_what_ran_since_that_observation():
    """The server records the decision although nobody acts on it: of it 0 actions ran, of the chunk before it all did."""
    client = Person()
    executor = ChunkExecutor(client, 4, prefetch=2, watchdog=PATIENT)
    for step in range(4):
        executor.step(IMAGES, at(step), "lift")
        answered(executor)
    client.free.clear()
    executor.step(IMAGES, at(4), "lift")  # asks, and goes on with the old chunk
    executor.correct(IMAGES, at(5), "lift", np.array([9.0, 5.0]))
    client.free.set()
    executor.step(IMAGES, at(6), "lift")
    assert client.log[1:] == [("act", 4, 4), ("correct", 5, 1, [9, 5]), ("act", 6, None)]
    executor.close()


def test_corrections_are_limited_and_lost_ones_are_counted():
    client = Person(lost=(2,))
    client.metadata = {
        "embodiments": {"arm": {"action_dim": 2, "control_hz": 10.0, "limits": {"high": [5.0, 5.0]}}},
        "default_embodiment": "arm",
    }
    executor = ChunkExecutor(client, 6, watchdog=PATIENT)
    executor.step(IMAGES, at(0), "lift")
    assert executor.correct(IMAGES, at(1), "lift", np.array([9.0, 1.0])).tolist() == [5, 1]
    executor.correct(IMAGES, at(2), "lift", np.array([1.0, 1.0]))
    executor.step(IMAGES, at(3), "lift")
    assert ("correct", 1, 1, [5, 1]) in client.log, "what the robot was told, not what the person asked for"
    assert executor.counts["corrections_lost"] == 1


class AsyncPerson(Person):
    """`Person` for asyncio; `open` lets its answers go."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.open = asyncio.Event()
        self.open.set()

    async def act(self, *args, **extras):
        await asyncio.wait_for(self.open.wait(), 120)
        return super().act(*args, **extras)

    async def correct(self, *args, **extras):
        await asyncio.wait_for(self.open.wait(), 120)
        return super().correct(*args, **extras)


async def settled(executor: AsyncChunkExecutor) -> None:
    """Waits until what is under way is done, as it is within two control periods of a real robot."""
    under_way = {task for task in (executor._pending, executor._abandoned, executor._recording) if task is not None}
    if under_way:
        await asyncio.wait(under_way, timeout=60)


def test_an_asynchronous_executor_records_in_order_and_asks_anew_afterwards():
    """As in the plain loop: the takeover comes while the policy is asked, and its decision counts with the steps since."""

    async def run() -> list[tuple]:
        client = AsyncPerson(lost=(6,))
        executor = AsyncChunkExecutor(client, 4, prefetch=2, watchdog=PATIENT)
        with pytest.raises(ValueError, match="correct: expected after the episode's first step of the policy"):
            await executor.correct(IMAGES, at(0), "lift", np.zeros(2))
        for step in range(4):
            await executor.step(IMAGES, at(step), "lift")
            await settled(executor)
        client.open.clear()
        await executor.step(IMAGES, at(4), "lift")  # asks, and goes on with the old chunk
        done = [await executor.correct(IMAGES, at(step), "lift", np.array([9.0, step])) for step in (5, 6, 7)]
        assert [command.tolist() for command in done] == [[9, 5], [9, 6], [9, 7]], "nobody waits for the server"
        assert executor.report.source == "correction"
        client.open.set()
        assert (await executor.step(IMAGES, at(8), "lift")).tolist() == [2, 0], "a new chunk from its first action"
        assert (executor.counts["corrections_lost"], executor.counts["correction"]) == (1, 3)
        await executor.close()
        return client.log

    assert asyncio.run(run())[1:] == [
        ("act", 4, 4),
        ("correct", 5, 1, [9, 5]),
        ("correct", 7, None, [9, 7]),
        ("act", 8, None),
    ]


def test_what_closing_an_asynchronous_executor_loses_is_counted():
    async def run() -> int:
        client = AsyncPerson()
        executor = AsyncChunkExecutor(client, 4, watchdog=PATIENT)
        await executor.step(IMAGES, at(0), "lift")
        client.open.clear()
        for step in (1, 2):
            await executor.correct(IMAGES, at(step), "lift", np.zeros(2))
        await executor.close()
        await asyncio.sleep(0.05)
        return executor.counts["corrections_lost"]

    assert asyncio.run(run()) == 2
