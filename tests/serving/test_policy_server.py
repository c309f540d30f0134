"""The server under load and over its life: worker thread, batches, bounded queue, deadlines, leaving clients, stopping."""

import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice

import httpx
import numpy as np
import pytest
from served_policies import CountingPolicy
from websockets.sync.client import connect

from syvla.serving.client.http_client import http_act, http_metadata, http_ready
from syvla.serving.wire.msgpack_codec import CODECS, pack, unpack


def opened(server):
    client = connect(f"ws://{server.url}", compression=None, max_size=None, ping_interval=None)
    client = client.__enter__()
    client.recv()
    return client


def ask(client, request) -> dict:
    client.send(pack(request))
    answer = client.recv(timeout=60)
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return unpack(answer)[0]


def wait_for(condition, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def test_pings_are_answered_during_a_long_call(serve, request_of):
    policy = CountingPolicy()
    server = serve(policy)
    with connect(f"ws://{server.url}", compression=None) as client:
        client.recv()
        policy.hold()
        client.send(pack(request_of()))
        assert policy.running.wait(30)
        for _ in range(5):
            assert client.ping().wait(30)
            assert httpx.get(f"http://{server.url}/healthz", timeout=30).text == "OK\n"
        with pytest.raises(TimeoutError):
            client.recv(timeout=0)  # the policy is still at work
        policy.release()
        assert unpack(client.recv(timeout=30))[0]["seed"] == 3


@pytest.mark.parametrize("codec", CODECS)
def test_answers_come_in_the_codec_of_the_request(serve, request_of, codec):
    answer = httpx.post(
        f"http://{serve().url}/v1/act",
        content=pack(request_of(), codec),
        headers={"Content-Type": "application/msgpack"},
    )
    reply, named = unpack(answer.content)
    assert named == codec
    assert reply["actions"].shape == (6, 2)


def test_requests_of_several_clients_share_a_batch(serve, request_of):
    """A batch waits for as many as it may hold, so that two of four come of eight requests however late each is."""
    policy = CountingPolicy()
    server = serve(policy, max_batch_size=4, max_wait_ms=60_000)
    clients = [opened(server) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(ask, clients, [request_of(seed=seed) for seed in range(8)]))
        assert [reply["actions"][0, 0] for reply in replies] == list(range(8)), (
            "everyone gets the answer to the own request"
        )
        assert [len(batch) for batch in policy.batches] == [4, 4]
        policy.batches.clear()
        list(pool.map(ask, clients, [request_of(num_steps=1 + seed % 2) for seed in range(8)]))
    assert [len(batch) for batch in policy.batches] == [4, 4]
    assert all(len({request.num_steps for request in batch}) == 1 for batch in policy.batches)
    for client in clients:
        client.close()


def test_one_client_never_waits_for_others(serve, request_of):
    server = serve(max_wait_ms=300_000)
    assert ask(opened(server), request_of())["seed"] == 3


def test_one_bad_request_does_not_cost_the_others_their_answers(serve, request_of):
    server = serve(CountingPolicy(seconds=0.1), max_wait_ms=300)
    clients = [opened(server) for _ in range(3)]
    requests = [request_of(), request_of(prompt="impossible"), request_of(prompt="break")]
    with ThreadPoolExecutor(3) as pool:
        good, impossible, broken = [pool.submit(ask, *pair) for pair in zip(clients, requests, strict=True)]
        assert good.result()["seed"] == 3
        with pytest.raises(RuntimeError, match="expected something possible"):
            impossible.result()
        with pytest.raises(RuntimeError, match="the policy failed"):
            broken.result()


def test_beyond_the_queue_requests_are_refused_at_once(serve, request_of):
    policy = CountingPolicy()
    server = serve(policy, max_batch_size=1, queue_size=2, deadline_s=120)
    body, headers = pack(request_of()), {"Content-Type": "application/msgpack"}

    def post() -> httpx.Response:
        return httpx.post(f"http://{server.url}/v1/act", content=body, headers=headers, timeout=120)

    policy.hold()
    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(post)]
        assert policy.running.wait(30)
        jobs += [pool.submit(post) for _ in range(4)]
        refused = [job.result() for job in islice(as_completed(jobs, timeout=60), 2)]  # the policy is still at work
        policy.release()
    assert [answer.status_code for answer in refused] == [503, 503]
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert "queue: expected at most 2 waiting requests" in refused[0].json()["error"]
    assert sorted(job.result().status_code for job in jobs) == [200, 200, 200, 503, 503]
    assert len(policy.batches) == 3
    assert server.service.metrics.value("rejected", "cause", "queue_full") == 2


def test_nothing_is_computed_after_the_deadline(serve, request_of):
    policy = CountingPolicy()
    server = serve(policy, max_batch_size=1, deadline_s=120)
    first, second = opened(server), opened(server)
    policy.hold()
    first.send(pack(request_of(seed=1)))
    assert policy.running.wait(30)
    with pytest.raises(RuntimeError, match=r"deadline: expected an answer within 0.1 s, which have passed"):
        ask(second, request_of(seed=2, deadline_ms=100))  # said at the deadline, not when the policy is free again
    policy.release()
    unpack(first.recv(timeout=30))
    assert ask(second, request_of(seed=4))["seed"] == 4
    assert [request.seed for batch in policy.batches for request in batch] == [1, 4]


def test_requests_of_clients_that_left_are_dropped(serve, request_of):
    policy = CountingPolicy()
    server = serve(policy, max_batch_size=1, deadline_s=120)
    first, second, third = opened(server), opened(server), opened(server)
    policy.hold()
    first.send(pack(request_of(seed=1)))
    assert policy.running.wait(30)
    second.send(pack(request_of(seed=2)))
    body, headers = pack(request_of(seed=3)), {"Content-Type": "application/msgpack"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"http://{server.url}/v1/act", content=body, headers=headers, timeout=0.5)
    second.close()
    wait_for(lambda: server.service.metrics.value("rejected", "cause", "disconnected") == 2)
    policy.release()
    assert ask(third, request_of(seed=4))["seed"] == 4
    assert [request.seed for batch in policy.batches for request in batch] == [1, 4]


def aborted(client) -> None:
    """Ends a connection as a robot's program that is killed does: at once, without a word."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.shutdown(socket.SHUT_RDWR)
    client.socket.close()


def test_a_client_that_leaves_while_it_is_answered_is_one_line_in_the_log(serve, request_of, caplog):
    """It has sent more requests than the server reads ahead, so the server learns only from the answer that it is gone."""
    caplog.set_level("INFO")
    policy = CountingPolicy()
    server = serve(policy, max_batch_size=1, deadline_s=120)
    client, other = opened(server), opened(server)
    policy.hold()
    for seed in range(4):
        client.send(pack(request_of(seed=seed)))
    assert policy.running.wait(30)
    aborted(client)
    time.sleep(0.2)
    policy.release()
    assert ask(other, request_of(seed=9))["seed"] == 9
    wait_for(lambda: server.service.clients.connections == 1)
    lines = [record for record in caplog.records if record.levelname != "DEBUG" and "left" in record.getMessage()]
    assert [record.getMessage().partition(" (")[0] for record in lines] == ["a client left before it had its answer"]
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


def test_a_client_that_leaves_while_it_sends_is_one_line_in_the_log(serve, caplog):
    caplog.set_level("INFO")
    server = serve()
    head = (
        "POST /v1/act HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/msgpack\r\nContent-Length: 100\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(head.encode() + b"12345")
        wait_for(lambda: server.service.memory.used > 0)
    wait_for(lambda: server.service.metrics.value("rejected", "cause", "disconnected") == 1)
    assert httpx.get(f"http://{server.url}/healthz", timeout=30).status_code == 200
    lines = [record.getMessage() for record in caplog.records if "left" in record.getMessage()]
    assert lines == ["a client left before it had sent its whole request (5 bytes of it)"]
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


def test_a_graceful_stop_finishes_what_was_accepted(serve, request_of):
    policy = CountingPolicy()
    server = serve(policy, max_batch_size=1, deadline_s=120)
    clients = [opened(server) for _ in range(2)]
    policy.hold()
    for seed, client in enumerate(clients):
        client.send(pack(request_of(seed=seed)))
    wait_for(lambda: server.service.clients.open_requests == 2)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    wait_for(lambda: server.service.draining)
    assert httpx.get(f"http://{server.url}/readyz").status_code == 503
    assert httpx.get(f"http://{server.url}/healthz").status_code == 200
    policy.release()
    for seed, client in enumerate(clients):
        assert unpack(client.recv(timeout=30))[0]["seed"] == seed
    stopping.join(60)
    assert not stopping.is_alive()
    with pytest.raises(OSError):
        httpx.get(f"http://{server.url}/healthz")


def test_nobody_is_answered_before_the_policy_is_loaded_and_warm(serve, request_of):
    go, warmed = threading.Event(), threading.Event()

    class Slow(CountingPolicy):
        def warm_up(self, think: bool = False) -> None:
            assert go.wait(120)
            warmed.set()

    server = serve(lambda: Slow(), wait=False)
    wait_for(lambda: httpx.get(f"http://{server.url}/healthz").text == "OK\n")
    assert not http_ready(f"http://{server.url}")
    for answer in (
        httpx.get(f"http://{server.url}/v1/metadata"),
        httpx.post(f"http://{server.url}/v1/act", content=b"x", headers={"Content-Type": "application/msgpack"}),
    ):
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers
    with connect(f"ws://{server.url}", compression=None) as client:
        with pytest.raises(TimeoutError):
            client.recv(timeout=0.3)  # the metadata comes when it can be true
        go.set()
        assert unpack(client.recv(timeout=30))[0]["model"] == "counting"
        assert warmed.is_set()
    assert http_ready(f"http://{server.url}")


def test_what_loading_raises_reaches_the_caller(serve):
    def load():
        raise ValueError("weights: expected a checkpoint, got none")

    with pytest.raises(ValueError, match="weights: expected a checkpoint"):
        serve(load)


def test_metadata_and_metrics_say_what_runs(serve, request_of):
    server = serve(action_limits={"arm": {"high": [1, None]}})
    url = f"http://{server.url}"
    metadata = http_metadata(url)
    arm = metadata["embodiments"]["arm"]
    assert metadata["policy_version"] == "counting"
    assert metadata["protocol_version"] == 1
    assert arm["limits"] == {"high": [1.0, None], "on_violation": "clamp", "start_from_state": False}
    assert set(arm["dialects"]) == {"lerobot"}, "of those that come with the package it alone suits two dimensions"
    for _ in range(3):
        http_act(url, request_of())
    httpx.post(f"{url}/v1/act", content=b"x", headers={"Content-Type": "application/msgpack"})
    lines = dict(
        line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines() if not line.startswith("#")
    )
    assert float(lines['syvla_phase_seconds_count{phase="total"}']) == 3
    assert float(lines['syvla_phase_seconds_bucket{le="+Inf",phase="decode"}']) == 3
    assert float(lines['syvla_rejected_total{cause="bad_request"}']) == 1
    assert float(lines["syvla_queue_length"]) == 0
    assert float(lines["syvla_requests_total"]) == 4


def test_a_swapped_policy_answers_the_next_request(serve, request_of):
    server = serve()
    client = opened(server)
    assert ask(client, request_of())["policy_version"] == "counting"
    before = server.service.swap_policy(CountingPolicy(version="next", horizon=4))
    assert before.version == "counting"
    reply = ask(client, request_of())
    assert (reply["policy_version"], len(reply["actions"])) == ("next", 4)


class Described(CountingPolicy):
    """A policy whose robot is described at will."""

    def __init__(self, **changes) -> None:
        super().__init__(version="described", dim=changes.pop("action_dim", 2))
        self.changes = changes

    def metadata(self) -> dict:
        described = super().metadata()
        described["embodiments"]["arm"] |= {"action_units": ["rad", "m"], **self.changes}
        return described


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_dim": 1}, r"arm.state_dim: expected 2, got 1; arm.action_dim: expected 2, got 1"),
        ({"action_names": ["grip", "shoulder"]}, r"arm.action_names: expected \['shoulder', 'grip'\], got \['grip'"),
        ({"control_hz": 50.0}, "arm.control_hz: expected 10.0, got 50.0"),
        ({"action_units": ["deg", "m"]}, "arm.action_units"),
    ],
)
def test_a_policy_that_breaks_what_clients_were_told_is_not_swapped_in(serve, request_of, changes, message):
    server = serve(Described())
    client = opened(server)
    with pytest.raises(ValueError, match=message):
        server.service.swap_policy(Described(**changes))
    assert ask(client, request_of())["policy_version"] == "described"
    assert len(ask(client, request_of())["actions"][0]) == 2
    server.service.swap_policy(Described())


def test_further_routes_lie_behind_the_same_token(serve):
    from fastapi import APIRouter

    from syvla.serving.contract.requests import RequestError

    router = APIRouter()

    @router.post("/v1/more")
    async def more():
        raise RequestError("reward: expected 0 or 1, got 2")

    server = serve(routers=[router], token="secret")
    assert httpx.post(f"http://{server.url}/v1/more").status_code == 401
    answer = httpx.post(f"http://{server.url}/v1/more", headers={"Authorization": "Bearer secret"})
    assert (answer.status_code, answer.json()["error"]) == (422, "reward: expected 0 or 1, got 2")


def test_thoughts_are_kept_for_the_calls_in_between(serve, request_of):
    policy = CountingPolicy()
    client = opened(serve(policy, think=3))
    seen = [ask(client, request_of()) for _ in range(4)]
    assert [reply["thought_age"] for reply in seen] == [0, 1, 2, 0]
    assert [reply["thought"] for reply in seen] == ["thought for lift 1"] * 3 + ["thought for lift 4"]
    assert ask(client, request_of(prompt="drop"))["thought"] == "thought for drop 5", (
        "another instruction, another thought"
    )
    assert ask(client, request_of(prompt="drop", reset=True))["thought_age"] == 0
    assert policy.forgotten[-1].startswith("connection-")
    assert ask(client, request_of(prompt="drop", think=False))["thought"] is None
    assert ask(client, request_of(prompt="drop", think=True))["thought"] == "thought for drop 8"
    assert ask(client, request_of(prompt="drop", think=2))["thought_age"] == 1


def test_a_session_outlives_its_connection(serve, request_of):
    server = serve(think=10)
    for age in range(2):
        client = opened(server)
        reply = ask(client, request_of(session_id="robot 7", request_id=f"{age}"))
        assert (reply["thought_age"], reply["request_id"]) == (age, f"{age}")
        client.close()
    assert http_act(f"http://{server.url}", request_of())["thought_age"] == 0, (
        "HTTP without a session remembers nothing"
    )


def test_a_request_that_is_sent_again_happens_once(serve, request_of, tmp_path):
    """As a client does whose connection was lost before the answer came: no episode, thought or decision of its own."""
    pytest.importorskip("pandas", reason="recording needs the train extra")
    from syvla.serving.recording.reader import read_rollouts

    server = serve(record=tmp_path / "rollouts", think=2)
    first = request_of(session_id="robot", request_id="1", reset=True)
    second = request_of(session_id="robot", request_id="2", executed_steps=3, seed=4)
    third = request_of(session_id="robot", request_id="3", executed_steps=2, seed=5)
    url = f"http://{server.url}"
    ages = [http_act(url, request)["thought_age"] for request in (first, first, second, second, second, third)]
    assert ages == [0, 0, 1, 1, 1, 0]
    server.stop()
    (episode,) = read_rollouts(tmp_path / "rollouts")
    assert [d.seed for d in episode.decisions] == [3, 4, 5]
    assert [d.executed for d in episode.decisions][:2] == [3, 2]


def test_the_episode_of_a_connection_is_sealed_when_it_closes(serve, request_of, tmp_path):
    """A client without a session id cannot come back to it; a named session may."""
    pytest.importorskip("pandas", reason="recording needs the train extra")
    from syvla.serving.recording.reader import read_rollouts

    server = serve(record=tmp_path / "rollouts")
    for name in (None, "robot"):
        client = opened(server)
        ask(client, request_of(session_id=name))
        client.close()
    wait_for(lambda: server.service.clients.connections == 0)
    page = f"http://{server.url}/metrics"
    wait_for(lambda: 'syvla_episodes{state="saved"} 1.0\n' in httpx.get(page).text, 60)
    assert 'syvla_episodes{state="open"} 1.0\n' in httpx.get(page).text
    assert 'syvla_episodes{state="lost"} 0.0\n' in httpx.get(page).text
    server.stop()
    assert [episode.facts.ended for episode in read_rollouts(tmp_path / "rollouts")] == [
        "disconnected",
        "server stopped",
    ]


@pytest.mark.slow
def test_served_episodes_are_recorded(serve, request_of, tmp_path):
    pytest.importorskip("pandas", reason="recording needs the train extra")
    from syvla.processing import RobotDataset

    server = serve(record=tmp_path / "rollouts", action_limits={"arm": {"high": [4, 100]}})
    client = opened(server)
    first = ask(client, request_of(episode_id="one"))
    assert first["chunk_id"] == "one:0"
    ask(client, request_of(executed_steps=4))
    ask(client, request_of(reset=True, episode_id="two"))
    with pytest.raises(RuntimeError, match="executed_steps: expected 0 to 6"):
        ask(client, request_of(executed_steps=7))
    server.stop()
    data = RobotDataset(tmp_path / "rollouts", embodiment="arm", chunk_size=2)
    assert (data.num_episodes, data.num_frames) == (2, 3)
    np.testing.assert_array_equal(data.actions[0], [3, 3])
