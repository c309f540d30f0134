"""Soak of the policy server: latency, throughput and memory for 1, 8 and 64 clients: `python -m benchmarks.serving`.

Every client sends three 224 x 224 images over a websocket, as fast as it is answered. Server and clients are processes of
their own on this machine and share its cores. Three servers: "echo" reads the message and answers at once, which is what
the transport alone costs; "none" is the policy server with a policy that answers at once; "tiny" is the policy server with
a tiny SyVLA of random weights.

- round trip: from the first byte sent to the last byte received, at the client;
- overhead: round trip less the time in which the policy worked on the batch that held the request;
- queue: the part of it spent waiting for the policy to be free.

Memory is the server's resident size after a warm-up and after `--soak` requests more; 64 clients of a real model:
`--soak-server tiny --soak-clients 64`.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting import print_table, write_result
from syvla.serving.client.policy_client import observation_request
from syvla.serving.contract.requests import ActAnswer, ActRequest
from syvla.serving.wire.msgpack_codec import pack, unpack

VIEWS = ("center", "left_wrist", "right_wrist")
STATE_DIM, ACTION_DIM, STEPS = 14, 14, 50
PHASES = ("think", "queries", "denoise")


class NullPolicy:
    """Answers with zeros."""

    version = "null"

    def metadata(self) -> dict[str, Any]:
        robot = {"state_dim": STATE_DIM, "action_dim": ACTION_DIM, "control_hz": 20.0}
        return {"embodiments": {"tabletop": robot}, "views": list(VIEWS), "action_horizon": STEPS}

    def submit_observation(self, request: ActRequest) -> None:
        """Returns None: no VLM runs in the background."""

    def answer(self, requests: Sequence[ActRequest]) -> list[ActAnswer]:
        actions = np.zeros((STEPS, ACTION_DIM), np.float32)
        return [ActAnswer(actions, timings={"denoise": 0.0}) for _ in requests]

    def take_vlm_seconds(self) -> list[dict[str, float]]:
        """Nothing runs in the background."""
        return []

    def forget(self, session: str) -> None:
        """Nothing is kept."""

    def warm_up(self, think: bool = False) -> None:
        """Nothing to warm up."""

    def close(self) -> None:
        """Nothing runs in the background."""


def tiny_checkpoint(folder: Path) -> Path:
    """A tiny SyVLA with random weights."""
    import torch

    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
    from syvla.processing import build_tiny_processor

    config = SyVLAConfig.tiny()
    processor = build_tiny_processor(config)
    statistics = {"mean": np.zeros(STATE_DIM), "std": np.ones(STATE_DIM)}
    processor.set_embodiment("tabletop", {"state": statistics, "action": statistics})
    torch.manual_seed(0)
    SyVLAModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


async def client(url: str, number: int, count: int, rows: list[tuple[float, float, float]]) -> None:
    """Sends `count` requests; adds (round trip, policy's time, waiting time) in milliseconds of each to `rows`."""
    from websockets.asyncio.client import connect

    rng = np.random.default_rng(number)
    images = {view: rng.integers(0, 256, (224, 224, 3), dtype=np.uint8) for view in VIEWS}
    request = observation_request(images, np.zeros(STATE_DIM), "lift the red cube", seed=number)
    message = pack(request)
    async with connect(url, compression=None, max_size=None) as socket:
        await socket.recv()
        for _ in range(count):
            started = time.perf_counter()
            await socket.send(message)
            answer = await socket.recv()
            elapsed = (time.perf_counter() - started) * 1000
            if isinstance(answer, str):
                raise RuntimeError(answer)
            timings = unpack(answer)[0]["timings_ms"]
            worked = sum(timings.get(phase, 0.0) for phase in PHASES)
            rows.append((elapsed, worked, max(0.0, timings["wait"] - worked)))


def load(url: str, clients: int, requests: int) -> dict[str, float]:
    """Runs `clients` clients with `requests` requests in all."""
    rows: list[tuple[float, float, float]] = []

    async def run() -> None:
        await asyncio.gather(*(client(url, number, requests // clients, rows) for number in range(clients)))

    started = time.perf_counter()
    asyncio.run(run())
    seconds = time.perf_counter() - started
    total, worked, queued = np.array(rows).T
    figures = {"requests": len(rows), "per_second": len(rows) / seconds, "policy_p50": float(np.median(worked))}
    for name, values in (("round_trip", total), ("overhead", total - worked), ("queue", queued)):
        figures |= {f"{name}_p50": float(np.quantile(values, 0.5)), f"{name}_p99": float(np.quantile(values, 0.99))}
    return figures


def resident_mb(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """ASGI application that answers every message with as much as the policy server's replies hold."""
    if scope["type"] != "websocket":
        return
    reply = pack({"actions": np.zeros((STEPS, ACTION_DIM), np.float32), "timings_ms": {"wait": 0.0}})
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "bytes": b"\xc0"})
    while (await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "bytes": reply})


def serve_echo() -> None:
    """The transport alone, until the other side closes standard input; prints the port."""
    import socket
    import threading

    import uvicorn

    config = uvicorn.Config(echo, ws_per_message_deflate=False, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    print(listening.getsockname()[1], flush=True)
    sys.stdin.read()
    server.should_exit = True
    thread.join()


def serve(policy: str, max_batch_size: int, max_wait_ms: float) -> None:
    """Serves until the other side closes standard input; prints the port.

    Args:
        policy: "echo", "none", or the folder of a checkpoint.
    """
    if policy == "echo":
        return serve_echo()
    import torch

    from syvla.serving.policy_server import PolicyServer
    from syvla.serving.server.settings import ServerSettings

    torch.set_num_threads(1)  # the tiny model gains nothing from more, and the clients need the other cores
    settings = ServerSettings(  # a busy machine's late answers count as well
        port=0, max_batch_size=max_batch_size, max_wait_ms=max_wait_ms, queue_size=256, deadline_s=600.0
    )
    server = (
        PolicyServer(NullPolicy(), settings) if policy == "none" else PolicyServer.from_pretrained(policy, settings)
    )
    with server.start():
        print(server.port, flush=True)
        sys.stdin.read()
    return None


@contextmanager
def running(policy: str, max_batch_size: int, max_wait_ms: float = 2.0) -> Iterator[tuple[str, int]]:
    """(URL, process id) of a server process."""
    arguments = [policy, str(max_batch_size), str(max_wait_ms)]
    command = [sys.executable, "-m", "benchmarks.serving", "--serve", *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"the server did not start: {' '.join(command)}")
        yield f"ws://127.0.0.1:{port}", process.pid
    finally:
        process.communicate(timeout=60)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=1000, help="per measurement without a model")
    parser.add_argument("--model-requests", type=int, default=320, help="per measurement with the tiny model")
    parser.add_argument("--soak", type=int, default=10_000, help="requests between the two readings of memory; 0: none")
    parser.add_argument("--soak-server", choices=("none", "tiny"), default="none", help="the server that is soaked")
    parser.add_argument("--soak-clients", type=int, default=8)
    parser.add_argument("--serve", nargs=3, metavar=("POLICY", "BATCH", "WAIT"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve:
        serve(options.serve[0], int(options.serve[1]), float(options.serve[2]))
        return
    results: list[dict[str, Any]] = []
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(tiny_checkpoint(Path(folder)))
        for policy, batch in (("echo", 1), ("none", 8), ("none", 1), (checkpoint, 8), (checkpoint, 1)):
            requests = options.model_requests if policy == checkpoint else options.requests
            name = "tiny" if policy == checkpoint else policy
            with running(policy, batch) as (url, process):
                load(url, 1, 20)
                for clients in options.clients:
                    figures = load(url, clients, max(requests, clients))
                    results.append({"server": name, "max_batch_size": batch, "clients": clients, **figures})
                if (name, batch) == (options.soak_server, 8) and options.soak:
                    load(url, options.soak_clients, 2 * options.soak_clients)  # their connections and buffers
                    memory = {"before_mb": resident_mb(process)}
                    soaked = load(url, options.soak_clients, options.soak)
                    memory |= {"after_mb": resident_mb(process), "requests": float(options.soak)}
                    memory |= {"clients": float(options.soak_clients), **soaked}
    columns = ("overhead_p50", "overhead_p99", "queue_p50", "round_trip_p50", "round_trip_p99", "policy_p50")
    head = ["server", "batch", "clients", "requests/s", *(name.replace("_", " ") for name in columns)]
    rows = [
        [r["server"], r["max_batch_size"], r["clients"], round(r["per_second"], 1), *(round(r[c], 2) for c in columns)]
        for r in results
    ]
    print_table(head, rows)
    print("times in milliseconds; overhead = round trip - policy, queue is part of it")
    if memory:
        print("memory: {before_mb:.1f} MB before, {after_mb:.1f} MB after {requests:.0f} requests".format(**memory))
    name = "serving" if options.soak_server == "none" else "serving_soak"
    print(write_result(name, {"rows": results, "memory": memory}))


if __name__ == "__main__":
    main()
