"""The client against real sockets: what it sends, how it bears lost connections, silence and refusals."""

import asyncio
import subprocess
import sys
import threading
import time
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.server import serve

from syvla.serving.client.http_client import http_metadata
from syvla.serving.client.policy_client import AsyncPolicyClient, PolicyClient
from syvla.serving.client.retries import PolicyError, Unreachable
from syvla.serving.wire.msgpack_codec import pack, unpack

ROOT = Path(__file__).resolve().parents[3]
IMAGES = {"head": np.arange(48, dtype=np.uint8).reshape(4, 4, 3)}
STATE = np.array([0.5, -1.0], np.float32)
QUICK = {"connect_timeout": 30.0, "read_timeout": 30.0, "backoff": 0.01}


class ScriptedServer:
    """Answers requests with actions that depend on the seed; the script says what happens to each request instead.

    Script entries: "answer", "drop" (close without an answer), "silence", "refuse" (an error frame).
    """

    def __init__(self, *script: str, token: str | None = None, steps: int = 6) -> None:
        self.script, self.token, self.steps = list(script), token, steps
        self.requests: list[dict] = []
        self.connections = 0
        self.hello = {"model": "scripted", "action_horizon": self.steps}
        self._server = serve(self._talk, "127.0.0.1", 0, process_request=self._admit)
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()

    def _admit(self, connection, request):
        if self.token and request.headers.get("Authorization") != f"Api-Key {self.token}":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong token\n")
        return None

    def _talk(self, socket):
        self.connections += 1
        socket.send(pack(self.hello))
        for message in socket:
            request = unpack(message)[0]
            self.requests.append(request)
            what = self.script.pop(0) if self.script else "answer"
            if what == "drop":
                return
            if what == "refuse":
                socket.send("state: expected shape (2,), got (3,)")
            elif what == "answer":
                actions = np.random.default_rng(request["seed"]).normal(size=(self.steps, 2)).astype(np.float32)
                socket.send(pack({"actions": actions, "request_id": request["request_id"]}))


def test_an_observation_arrives_and_actions_come_back():
    with ScriptedServer(token="secret") as server, PolicyClient(server.url, token="secret", **QUICK) as client:
        assert client.metadata["model"] == "scripted"
        reply = client.act(IMAGES, STATE, "lift", seed=5, think=None)
        np.testing.assert_array_equal(reply["actions"], np.random.default_rng(5).normal(size=(6, 2)).astype(np.float32))
        client.reset()
        client.act(IMAGES, STATE, "lift")
        client.act(IMAGES, STATE, "lift")
    sent = server.requests
    assert set(sent[0]) == {
        "observation.images.head", "observation.state", "prompt", "seed", "request_id", "session_id",
    }  # fmt: skip
    np.testing.assert_array_equal(sent[0]["observation.images.head"], IMAGES["head"])
    assert [request.get("reset") for request in sent] == [None, True, None]
    assert len({request["request_id"] for request in sent}) == 3
    assert len({request["session_id"] for request in sent}) == 1


def test_a_request_whose_connection_was_lost_is_repeated_as_it_was():
    with ScriptedServer("answer", "drop", "drop") as server, PolicyClient(server.url, **QUICK) as client:
        client.act(IMAGES, STATE, "lift")
        client.act(IMAGES, STATE, "lift")
    first, *repeated = server.requests
    assert server.connections == 3
    assert len(repeated) == 3
    assert {(request["seed"], request["request_id"]) for request in repeated} == {
        (repeated[0]["seed"], repeated[0]["request_id"])
    }
    assert repeated[0]["request_id"] != first["request_id"]


def test_silence_ends_at_the_timeout_and_the_next_answer_is_not_mixed_up():
    options = {**QUICK, "read_timeout": 1.0, "retries": 0}
    with ScriptedServer("silence") as server, PolicyClient(server.url, **options) as client:
        started = time.monotonic()
        with pytest.raises(Unreachable, match="no answer after 1 attempts"):
            client.act(IMAGES, STATE, "lift")
        assert time.monotonic() - started < 10
        assert len(client.act(IMAGES, STATE, "lift")["actions"]) == 6
        assert server.connections == 2


def test_a_refusal_is_not_repeated_and_leaves_the_connection():
    with ScriptedServer("refuse") as server, PolicyClient(server.url, **QUICK) as client:
        with pytest.raises(PolicyError, match=r"expected shape \(2,\)"):
            client.act(IMAGES, STATE, "lift")
        client.act(IMAGES, STATE, "lift")
        assert (server.connections, len(server.requests)) == (1, 2)


def test_a_wrong_token_is_said_at_once_and_nobody_listening_after_the_retries():
    with ScriptedServer(token="secret") as server, pytest.raises(PolicyError, match="HTTP 401: wrong token"):
        PolicyClient(server.url, token="guess", **QUICK)
    with pytest.raises(Unreachable, match=r"3 attempts.*is the server running"):
        PolicyClient(server.url, retries=2, **QUICK)


def test_the_asynchronous_client_does_the_same():
    async def talk(url: str) -> None:
        async with AsyncPolicyClient(url, token="secret", **{**QUICK, "read_timeout": 10.0}) as client:
            assert client.metadata["model"] == "scripted"
            replies = await asyncio.gather(*(client.act(IMAGES, STATE, "lift", seed=seed) for seed in (1, 2)))
            for seed, reply in zip((1, 2), replies, strict=True):
                expected = np.random.default_rng(seed).normal(size=(6, 2)).astype(np.float32)
                np.testing.assert_array_equal(reply["actions"], expected)
            with pytest.raises(PolicyError, match="expected shape"):
                await client.act(IMAGES, STATE, "lift")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.act(IMAGES, STATE, "lift")  # given up by the caller
            await client.act(IMAGES, STATE, "lift")
        with pytest.raises(PolicyError, match="HTTP 401"):
            async with AsyncPolicyClient(url, **QUICK):
                pass

    with ScriptedServer("answer", "drop", "answer", "refuse", "silence", token="secret") as server:
        asyncio.run(talk(server.url))
    assert server.requests[1]["request_id"] == server.requests[2]["request_id"]


def test_a_client_needs_no_torch():
    script = """
import sys
from syvla.serving import ActionChunks, AsyncChunkExecutor, AsyncPolicyClient, ChunkExecutor, PolicyClient
import syvla.serving.client.http_client, syvla.serving.wire.msgpack_codec
print([name for name in ("torch", "transformers", "PIL", "fastapi") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


ARM = {"state_dim": 2, "action_dim": 2, "action_names": ["shoulder", "grip"], "control_hz": 10.0}


def test_another_server_after_a_lost_connection_is_told_or_refused(caplog):
    """A robot's loop relies on what it was told about the robot; another version or horizon is only told."""
    with ScriptedServer("answer", "drop", "answer", "drop", "answer") as server:
        server.hello = {"model": "one", "policy_version": "a", "action_horizon": 6, "embodiments": {"arm": ARM}}
        client = PolicyClient(server.url, **QUICK)
        client.act(IMAGES, STATE, "lift")
        server.hello = {**server.hello, "policy_version": "b", "action_horizon": 4}
        client.act(IMAGES, STATE, "lift")
        assert "policy_version is b, was a" in caplog.text
        assert "action_horizon is 4, was 6" in caplog.text
        assert client.metadata["policy_version"] == "b"
        server.hello = {**server.hello, "embodiments": {"arm": {**ARM, "action_names": ["grip", "shoulder"]}}}
        with pytest.raises(
            PolicyError, match=r"the server is not what it was: arm.action_names: expected \['shoulder'"
        ):
            client.act(IMAGES, STATE, "lift")
        client.close()


@pytest.mark.parametrize(
    ("token", "got"), [("secret\n", "a line break"), ("two words", "other characters"), ("", "an empty")]
)
def test_a_token_that_no_header_carries_is_the_callers_fault_and_is_not_shown(token, got):
    with pytest.raises(ValueError, match=f"token: expected printable ASCII.*got {got}") as refused:
        PolicyClient("ws://127.0.0.1:9", token=token)
    assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match="token: expected printable ASCII"):
        http_metadata("http://127.0.0.1:9", token=token)
