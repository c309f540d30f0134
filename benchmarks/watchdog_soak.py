"""A robot behind a bad network: `python -m benchmarks.watchdog_soak --minutes 10`.

A proxy on loopback stands between a robot's executor and a policy server. It delays messages, drops them, holds them back until
the next one has passed, sends them twice, and cuts connections, at random. The robot steps at 20 Hz and checks every step:

- blocked: longest time of a step after the episode's first, which may wait. `max_wait_s` is allowed; the rest is the machine's,
  see `idle_late_s`: how late a thread that only sleeps wakes up beside it. Server and proxy are another process, as beside a
  robot. On a busy machine give the command real-time priority, as a control loop has it: `chrt --fifo 10 python -m ...`.
- limits: the largest change between two commands, beside the largest allowed.
- holds: the policy numbers its actions, so a command that is not the next action shows by itself. Each such step must be
  reported, and no other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.reporting import write_result
from benchmarks.serving import NullPolicy
from syvla.serving import ChunkExecutor, MeasuredDelay, PolicyClient, PolicyServer, Watchdog
from syvla.serving.contract.requests import ActAnswer, ActRequest
from syvla.serving.server.settings import ServerSettings

STEPS, MAX_STEP, NUMBERED = 30, 0.05, 13
IMAGES = {view: np.zeros((32, 32, 3), np.uint8) for view in ("center", "left_wrist", "right_wrist")}


class NumberingPolicy(NullPolicy):
    """Wild joints, which the limits must tame, and a last dimension that numbers chunk and step."""

    version = "numbering"

    def __init__(self) -> None:
        self.chunks = 0

    def answer(self, requests: Sequence[ActRequest]) -> list[ActAnswer]:
        answers = []
        for _ in requests:
            self.chunks += 1
            actions = np.random.default_rng(self.chunks).normal(size=(STEPS, 14)).astype(np.float32)
            actions[:, NUMBERED] = 100 * self.chunks + np.arange(STEPS)
            answers.append(ActAnswer(actions))
        return answers


class BadNetwork:
    """A websocket proxy that mistreats messages. `events` counts what it did.

    Args:
        upstream: URL of the server.
        seed: Of its dice.
        gap_s: Longest delay of an ordinary message.
    """

    def __init__(self, upstream: str, seed: int, gap_s: float = 0.12) -> None:
        self.upstream, self.dice, self.gap_s = upstream, random.Random(seed), gap_s
        self.events: Counter[str] = Counter()

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Serves in a thread; gives the address."""
        loop, ready, port = asyncio.new_event_loop(), threading.Event(), [0]

        async def serve() -> None:
            from websockets.asyncio.server import serve as listen

            async with listen(self._pass, "127.0.0.1", 0, compression=None, max_size=None) as server:
                port[0] = next(iter(server.sockets)).getsockname()[1]
                ready.set()
                await asyncio.get_running_loop().create_future()

        def run() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(main)

        main = loop.create_task(serve())
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            if not ready.wait(60):
                raise RuntimeError("the proxy did not start")
            yield f"127.0.0.1:{port[0]}"
        finally:
            loop.call_soon_threadsafe(main.cancel)
            thread.join(20)

    async def _pass(self, robot: Any) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        with contextlib.suppress(WebSocketException, OSError):
            async with connect(self.upstream, compression=None, max_size=None) as server:
                await robot.send(await server.recv())  # the metadata
                ways = [asyncio.create_task(self._forward(*pair)) for pair in ((robot, server), (server, robot))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
        robot.transport.abort()

    async def _forward(self, source: Any, target: Any) -> None:
        """One direction, until it cuts the connection or one side does."""
        held: Any = None
        while True:
            message = await source.recv()
            fate = self.dice.choices(
                ("pass", "delay", "long", "drop", "hold back", "twice", "cut"), (55, 22, 4, 6, 5, 4, 4)
            )[0]
            self.events[fate] += 1
            if fate == "cut":
                return
            if fate == "drop":
                continue
            if fate == "hold back" and held is None:
                held = message
                continue
            if fate in ("delay", "long"):
                await asyncio.sleep(self.dice.uniform(0, self.gap_s) if fate == "delay" else self.dice.uniform(0.5, 3))
            await target.send(message)
            if fate == "twice":
                await target.send(message)
            if held is not None:
                await target.send(held)
                held = None


@contextlib.contextmanager
def bad_server(seed: int) -> Iterator[tuple[str, dict[str, int]]]:
    """A policy server behind a bad network, in a process of its own. Gives the address, and at the end what the network did."""
    spawn, events = multiprocessing.get_context("spawn"), dict[str, int]()
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve_badly, args=(there, seed), daemon=True)
    process.start()
    there.close()  # so that the process's death ends `recv`
    try:
        yield here.recv(), events
        here.send("stop")
        events.update(here.recv())
    finally:
        here.close()
        process.join(20)
        process.kill()


def _serve_badly(pipe: Connection, seed: int) -> None:
    limits = {"max_step": [MAX_STEP] * NUMBERED + [None]}
    settings = ServerSettings(port=0, action_limits={"tabletop": limits})
    with PolicyServer(NumberingPolicy(), settings).start(60) as server:
        network = BadNetwork(f"ws://{server.url}", seed)
        with network.running() as url, contextlib.suppress(EOFError):
            pipe.send(url)
            pipe.recv()
            pipe.send(dict(network.events))


def soak(seconds: float, seed: int = 0, hz: float = 20.0) -> dict[str, Any]:
    """Steps a robot through the bad network and checks every step; see the module."""
    period = 1 / hz
    with bad_server(seed) as (url, network):
        client = connected(url)
        watchdog = Watchdog(max_wait_s=0.8 * period, max_age_s=2.0, first_wait_s=60.0, retry_s=0.1)
        executor = ChunkExecutor(client, 8, prefetch=MeasuredDelay(most=6), seams="switch", watchdog=watchdog)
        with idle_lateness(period) as late:
            found = drive(executor, seconds, period)
        executor.close()
        client.close()
    taken = found.pop("taken")
    return {
        **found,
        "max_wait_s": watchdog.max_wait_s,
        "first_step_s": round(taken.pop(0), 4),
        "steps_over_period": sum(step > period for step in taken),
        "wakings_over_period": sum(waking > period for waking in late),
        "step_s": {"p50": quantile(taken, 0.5), "p999": quantile(taken, 0.999), "max": round(max(taken), 4)},
        "idle_late_s": {"p50": quantile(late, 0.5), "p999": quantile(late, 0.999), "max": round(max(late), 4)},
        "network": network,
        "counts": dict(executor.counts),
    }


def connected(url: str) -> PolicyClient:
    """A client behind the network, which may cut even the first connection."""
    while True:
        try:
            return PolicyClient(url, read_timeout=1.0, connect_timeout=2.0, retries=1, backoff=0.02)
        except OSError:
            continue


def drive(executor: ChunkExecutor, seconds: float, period: float) -> dict[str, Any]:
    """The control loop and its checks."""
    taken: list[float] = []
    found = {
        "steps": 0,
        "largest_change": 0.0,
        "max_step": MAX_STEP,
        "not_the_next_action": 0,
        "reported": 0,
        "wrong": 0,
    }
    last: np.ndarray | None = None
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        started = time.monotonic()
        command = executor.step(IMAGES, np.zeros(14, np.float32), "lift")
        taken.append(time.monotonic() - started)
        report = executor.report
        found["steps"] += 1
        if last is not None:
            found["largest_change"] = max(found["largest_change"], float(np.abs(command - last)[:NUMBERED].max()))
            stale = command[NUMBERED] == last[NUMBERED]
            reported = report.source != "chunk" and bool(report.reason)
            found["not_the_next_action"] += int(stale)
            found["reported"] += int(reported)
            found["wrong"] += int(stale != reported)
        last = command
        time.sleep(max(0.0, started + period - time.monotonic()))
    return {**found, "taken": taken}


@contextlib.contextmanager
def idle_lateness(period: float) -> Iterator[list[float]]:
    """How late a thread wakes up that does nothing but sleep, meanwhile."""
    late, over = [0.0], threading.Event()

    def sleep() -> None:
        while not over.is_set():
            started = time.monotonic()
            time.sleep(period)
            late.append(time.monotonic() - started - period)

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    try:
        yield late
    finally:
        over.set()
        thread.join()


def quantile(values: Sequence[float], share: float) -> float:
    return round(float(np.quantile(values, share)), 4)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    real_time = os.sched_getscheduler(0) == os.SCHED_FIFO
    described = {"minutes": options.minutes, "seed": options.seed, "real_time_priority": real_time}
    result = {**described, **soak(60 * options.minutes, options.seed)}
    for name, value in result.items():
        print(f"{name}: {value}")
    print(write_result("watchdog_soak", result))


if __name__ == "__main__":
    main()
