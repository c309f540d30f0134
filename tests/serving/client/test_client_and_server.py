"""Our client against our server: what one sends the other understands, over restarts and kills of the server."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ports import reserved_port
from served_policies import CountingPolicy

import syvla.processing.recording.robot_dataset_writer  # noqa: F401  takes seconds, which a server that records would be waited for
from syvla.serving import AsyncChunkExecutor, AsyncPolicyClient, ChunkExecutor, PolicyClient, PolicyError
from syvla.serving.client.chunk_execution import Watchdog
from syvla.serving.client.http_client import http_act, http_metadata, http_ready
from syvla.serving.client.policy_client import observation_request
from syvla.serving.recording.reader import read_rollouts

ROOT = Path(__file__).resolve().parents[3]
IMAGES = {"center": np.arange(48, dtype=np.uint8).reshape(4, 4, 3)}
STATE = np.zeros(2, np.float32)


@pytest.mark.smoke
def test_websocket_and_http_give_the_same_actions(serve):
    server = serve(token="secret")
    request = observation_request(IMAGES, STATE, "lift", seed=5)
    with PolicyClient(server.url, token="secret") as client:
        assert client.metadata["action_horizon"] == 6
        reply = client.act(IMAGES, STATE, "lift", seed=5)
        np.testing.assert_array_equal(reply["actions"][:, 0], np.arange(5, 11))
        assert (reply["seed"], reply["policy_version"]) == (5, "counting")
        with pytest.raises(PolicyError, match=r"observation\.state"):
            client.act(IMAGES, np.array([np.nan, 0]), "lift")
    over_http = http_act(f"http://{server.url}", request, token="secret")
    np.testing.assert_array_equal(over_http["actions"], reply["actions"])
    assert http_metadata(f"http://{server.url}", token="secret")["policy_version"] == "counting"
    assert http_ready(f"http://{server.url}")
    with pytest.raises(PolicyError, match="HTTP 401"):
        http_act(f"http://{server.url}", request, token="guess")
    with pytest.raises(PolicyError, match="401"):
        PolicyClient(server.url, token="guess")

    async def ask() -> np.ndarray:
        async with AsyncPolicyClient(server.url, token="secret") as client:
            return (await client.act(IMAGES, STATE, "lift", seed=5))["actions"]

    np.testing.assert_array_equal(asyncio.run(ask()), reply["actions"])


def test_a_restarted_server_goes_on_answering_the_same_client(serve):
    from syvla.serving import PolicyServer
    from syvla.serving.server.settings import ServerSettings

    with reserved_port() as port:
        go_on_after_a_restart(lambda: PolicyServer(CountingPolicy(), ServerSettings(port=port)).start(120))


def go_on_after_a_restart(start):
    first = start()
    with PolicyClient(first.url, retries=100, backoff=0.1, max_backoff=0.5) as client:
        client.act(IMAGES, STATE, "lift")
        first.stop()
        second: list = []
        later = threading.Timer(0.4, lambda: second.append(start()))
        later.start()
        reply = client.act(IMAGES, STATE, "lift", seed=7)
        np.testing.assert_array_equal(reply["actions"][0], [7, 7])
    later.join()
    second[0].stop()


def run_in_a_plain_loop(url: str) -> list[list[float]]:
    with PolicyClient(url) as client:
        executor = ChunkExecutor(client, 3, prefetch=2, watchdog=Watchdog(max_wait_s=60.0))
        executor.reset()
        actions = []
        for _ in range(9):
            actions.append(executor.step(IMAGES, STATE, "lift", seed=5).tolist())
            if executor._pending is not None:  # answers come within two control periods
                executor._pending.exception(timeout=60)
        executor.close()
        return actions


def run_in_asyncio(url: str) -> list[list[float]]:
    async def run() -> list[list[float]]:
        async with AsyncPolicyClient(url) as client:
            executor = AsyncChunkExecutor(client, 3, prefetch=2, watchdog=Watchdog(max_wait_s=60.0))
            await executor.reset()
            actions = []
            for _ in range(9):
                actions.append((await executor.step(IMAGES, STATE, "lift", seed=5)).tolist())
                if executor._pending is not None:
                    await asyncio.wait({executor._pending}, timeout=60)
            await executor.close()
            return actions

    return asyncio.run(run())


@pytest.mark.parametrize("run", [run_in_a_plain_loop, run_in_asyncio])
def test_an_executor_with_prefetch_tells_the_server_what_runs(serve, tmp_path, run):
    policy = CountingPolicy()
    server = serve(policy, record=tmp_path / "rollouts")
    actions = run(server.url)
    assert [first for first, _ in actions] == [5, 6, 7, 8, 9, 7, 8, 9, 7], "entered at the step that had come"
    continued = [request.previous for batch in policy.batches for request in batch if request.previous is not None]
    assert [previous.delay for previous in continued] == [2, 2]
    np.testing.assert_array_equal(continued[0].actions[:, 0], [8, 9, 10])
    server.stop()
    (episode,) = read_rollouts(tmp_path / "rollouts")
    assert [d.executed for d in episode.decisions][:2] == [3, 3]
    assert [d.executed_known for d in episode.decisions] == [True, True, False]
    assert [d.control_step for d in episode.decisions] == [0, 3, 6]


def test_an_asynchronous_executor_waits_where_its_chunk_has_run_out_and_the_loop_goes_on(serve):
    policy = CountingPolicy()
    server = serve(policy)

    async def run() -> None:
        async with AsyncPolicyClient(server.url) as client:
            executor = AsyncChunkExecutor(client, 4, prefetch=2, watchdog=Watchdog(max_wait_s=60.0))

            async def act() -> float:
                return float((await executor.step(IMAGES, STATE, "lift", seed=5))[0])

            actions = [await act() for _ in range(4)]
            policy.hold()
            actions += [await act(), await act()]  # asks, and takes what is left
            assert actions == [5, 6, 7, 8, 9, 10]
            late = asyncio.create_task(act())
            assert await asyncio.to_thread(policy.running.wait, 60)
            assert not late.done(), "the chunk has run out"
            policy.release()
            assert await late == 7, "two steps after its observation"

            await act()
            policy.hold()  # before the next request
            await act()
            assert executor._pending is not None
            assert await asyncio.to_thread(policy.running.wait, 60)
            await executor.reset()  # does not wait for the answer that is under way
            assert (executor.last_reply, executor.seam) == (None, None)
            policy.release()

            given_up = asyncio.create_task(act())
            await asyncio.sleep(0)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            assert await act() == 5
            await executor.close()

    asyncio.run(run())


SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from served_policies import CountingPolicy
from syvla.serving import PolicyServer
from syvla.serving.server.settings import ServerSettings

with PolicyServer(CountingPolicy(), ServerSettings(port=0), record=sys.argv[2]).start() as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_killed_server_leaves_the_episodes_that_had_ended(tmp_path):
    root = tmp_path / "rollouts"
    command = [sys.executable, "-c", SERVER, str(ROOT / "tests" / "support"), str(root)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        client = PolicyClient(process.stdout.readline().strip())
        for _ in range(3):  # the third one is never ended
            client.reset()
            for decision in range(4):
                client.act(IMAGES, STATE, "lift", seed=decision, executed_steps=5 if decision else None)
        until = time.monotonic() + 120
        while not (root / "meta" / "info.json").is_file() or len(read_rollouts(root)) < 2:
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    episodes = read_rollouts(root)
    assert len(episodes) == 2
    for episode in episodes:
        assert [d.seed for d in episode.decisions] == [0, 1, 2, 3]
        assert [d.executed for d in episode.decisions] == [5, 5, 5, 6]
        np.testing.assert_array_equal(episode.decisions[2].chunk[:, 0], np.arange(2, 8))
        assert episode.facts.policy_versions == ("counting",)


def take_over_in_a_plain_loop(url: str) -> int:
    with PolicyClient(url) as client:
        executor = ChunkExecutor(client, 6, watchdog=Watchdog(max_wait_s=60.0))
        for _ in range(2):
            executor.step(IMAGES, STATE, "lift")
        for step in range(3):
            executor.correct(IMAGES, STATE, "lift", np.array([step, 1.0]))
        executor.step(IMAGES, STATE, "lift")
        executor.close()
        return executor.counts["corrections_lost"]


def take_over_in_asyncio(url: str) -> int:
    async def run() -> int:
        async with AsyncPolicyClient(url) as client:
            executor = AsyncChunkExecutor(client, 6, watchdog=Watchdog(max_wait_s=60.0))
            for _ in range(2):
                await executor.step(IMAGES, STATE, "lift")
            for step in range(3):
                await executor.correct(IMAGES, STATE, "lift", np.array([step, 1.0]))
            await executor.step(IMAGES, STATE, "lift")
            await executor.close()
            return executor.counts["corrections_lost"]

    return asyncio.run(run())


@pytest.mark.parametrize("take_over", [take_over_in_a_plain_loop, take_over_in_asyncio])
def test_a_persons_corrections_are_recorded_over_the_websocket(serve, tmp_path, take_over):
    server = serve(record=tmp_path / "rollouts")
    assert take_over(server.url) == 0
    server.stop()
    (rollout,) = read_rollouts(tmp_path / "rollouts")
    assert [(d.executed, d.taken_over, d.control_step) for d in rollout.decisions] == [(2, True, 0), (6, False, 5)]
    assert [one.commands[0].tolist() for one in rollout.corrections] == [[0, 1], [1, 1], [2, 1]]
