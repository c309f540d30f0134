"""One message to one reply: a request keeps its form down to the policy and the recorder, and the reply is encoded once."""

import asyncio
from typing import ClassVar

import httpx
import numpy as np
import pytest
from served_policies import CountingPolicy

from syvla.serving.client.http_client import http_act
from syvla.serving.contract.requests import RequestError
from syvla.serving.server import act_service
from syvla.serving.wire.msgpack_codec import pack, unpack


class Recorder:
    """Notes what the server tells its recording."""

    robots = frozenset({"arm"})

    def __init__(self) -> None:
        self.checked, self.observed, self.recorded, self.resets = [], [], [], []

    def check(self, request) -> None:
        self.checked.append(request)

    def reset(self, session, executed) -> None:
        self.resets.append((session, executed))

    def observe(self, request) -> dict:
        self.observed.append(request)
        return {"chunk_id": "seen"}

    def record(self, request, answer, sent, version) -> dict:
        self.recorded.append((request, sent, version))
        return {"chunk_id": "kept"}

    def ended(self, session, why) -> None:
        """Nothing is open."""

    def status(self) -> dict:
        return {}

    losses = status
    lost: ClassVar[dict] = {}

    def close(self) -> None:
        """Nothing to close."""


def test_policy_and_recorder_get_the_request_that_was_read(serve, request_of):
    policy, recorder = CountingPolicy(), Recorder()
    server = serve(policy)
    server.service.recording = recorder
    options = {"session_id": "robot", "episode_id": "one", "request_id": "r1", "num_steps": 4, "executed_steps": 2}
    chunk = np.ones((3, 2), np.float32)
    request = request_of(prev_chunk=chunk, delay_steps=1, **options)
    reply = http_act(f"http://{server.url}", request)
    ((asked,),) = policy.batches
    ((recorded, sent, version),) = recorder.recorded
    assert recorder.checked[0].images is asked.images is recorded.images, "nothing is copied on the way"
    assert (asked.session, asked.episode_id, asked.request_id) == ("robot", "one", "r1")
    assert (asked.num_steps, asked.executed_steps, asked.seed, asked.rollout) == (4, 2, 3, True)
    np.testing.assert_array_equal(asked.previous.actions, chunk)
    assert asked.previous.delay == 1
    np.testing.assert_array_equal(sent, reply["actions"])
    assert (reply["chunk_id"], reply["request_id"], version) == ("kept", "r1", "counting")
    http_act(f"http://{server.url}", {**request, "reset": True, "request_id": "r2"})
    assert recorder.resets == [("robot", 2)]
    assert recorder.recorded[1][0].executed_steps is None, "it was about the episode that is over"


def test_an_observation_is_recorded_and_not_asked_about(serve, request_of):
    policy, recorder = CountingPolicy(), Recorder()
    server = serve(policy)
    body, headers = pack(request_of(observe_only=True)), {"Content-Type": "application/msgpack"}
    refused = httpx.post(f"http://{server.url}/v1/act", content=body, headers=headers)
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("observe_only: expected a server that records")
    server.service.recording = recorder
    answer = httpx.post(f"http://{server.url}/v1/act", content=body, headers=headers)
    assert unpack(answer.content)[0] == {"observed": True, "chunk_id": "seen"}
    assert (len(recorder.observed), policy.batches) == (1, [])


def test_a_reply_is_encoded_once_and_its_encoding_is_in_the_metrics(serve, request_of, monkeypatch):
    encoded = []
    monkeypatch.setattr(act_service, "pack", lambda *arguments: encoded.append(1) or pack(*arguments))
    server = serve()
    reply = http_act(f"http://{server.url}", request_of())
    assert encoded == [1]
    assert "encode" not in reply["timings_ms"], "it cannot stand in what it takes to encode"
    page = httpx.get(f"http://{server.url}/metrics").text
    count = next(line for line in page.splitlines() if line.startswith('syvla_phase_seconds_count{phase="encode"}'))
    assert float(count.split()[-1]) == 1


@pytest.mark.parametrize("prompt", ["nan", "impossible", "break"])
def test_whatever_fails_gives_back_memory_and_its_place(serve, request_of, prompt):
    server = serve()
    service = server.service

    async def handle() -> None:
        await service.handle(pack(request_of(prompt=prompt)), asyncio.Event(), connection=None)

    with pytest.raises(RequestError):
        asyncio.run(handle())
    assert (service.memory.used, service.clients.open_requests) == (0, 0)
    assert http_act(f"http://{server.url}", request_of())["seed"] == 3
