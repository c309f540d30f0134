"""Whatever comes over the network gets an error that names the key, and leaves connection and server usable."""

import base64
import io
import json
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgpack
import numpy as np
import pytest
from PIL import Image
from served_policies import CountingPolicy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from syvla.serving.client.http_client import http_act
from syvla.serving.wire.msgpack_codec import CodecLimits, pack, unpack

TRUNCATED = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(TRUNCATED, "JPEG")
SMALL = CodecLimits(max_message_bytes=100_000, max_array_bytes=50_000)

CASES = {  # changes to a good request, and what the error says
    "wrong key": ({"observation.stat": np.zeros(2)}, r"observation.stat: unknown key; dialect 'lerobot' expects"),
    "wrong camera": (
        {"observation.images.center": None, "observation.images.ceiling": np.zeros((4, 4, 3), np.uint8)},
        r"observation.images.ceiling: unknown key.*expects observation.images.center",
    ),
    "wrong dtype": (
        {"observation.images.center": np.zeros((4, 4, 3), np.int64)},
        r"observation.images.center: expected .*uint8.*got \(4, 4, 3\) int64",
    ),
    "wrong shape": ({"observation.state": np.zeros((2, 2))}, r"observation.state: expected \(2,\) numbers, got shape \(2, 2\)"),
    "a line as image": (
        {"observation.images.center": np.zeros((1, 201, 3), np.uint8)},
        r"observation.images.center: expected sides of which one is at most 200 times the other, got 201 x 1",
    ),
    "NaN state": ({"observation.state": np.array([0, np.nan])}, r"observation.state: expected finite numbers, got nan"),
    "truncated JPEG": (
        {"observation.images.center": TRUNCATED.getvalue()[:-500]},
        r"observation.images.center: expected a whole JPEG or PNG file, got a damaged or truncated one",
    ),
    "empty instruction": ({"prompt": ""}, r"prompt: expected an instruction, got an empty text"),
    "unknown embodiment": ({"embodiment": "cobot"}, r"embodiment: expected one of \['arm'\], got 'cobot'"),
    "path as image": ({"observation.images.center": "/etc/passwd"}, r"observation.images.center: expected .*got str"),
    "endless steps": ({"num_steps": 10**6}, r"num_steps: expected an integer from 1 to 50, got 1000000"),
    "endless thought": ({"max_new_tokens": 10**6}, r"max_new_tokens: expected an integer from 1 to 256"),
    "negative seed": ({"seed": -1}, r"seed: expected an integer from 0 to"),
    "text as think": ({"think": "yes"}, r"think: expected an integer from 1 to"),
    "array as request id": ({"request_id": [1]}, r"request_id: expected a text of 1 to 128 printable"),
    "past deadline": ({"deadline_ms": -5}, r"deadline_ms: expected a positive number"),
    "lone delay": ({"delay_steps": 2}, r"delay_steps: expected together with prev_chunk"),
    "lone guidance": ({"max_guidance_weight": 5.0}, r"max_guidance_weight: expected together with prev_chunk"),
    "lone known actions": ({"known_actions": True}, r"known_actions: expected together with prev_chunk"),
    "no flag": ({"prev_chunk": np.zeros((2, 2)), "known_actions": 1}, r"known_actions: expected true or false, got 1"),
    "no guidance": (
        {"prev_chunk": np.zeros((2, 2)), "max_guidance_weight": 0.0}, r"max_guidance_weight: expected a number above 0"
    ),
    "NaN chunk": ({"prev_chunk": np.full((2, 2), np.nan)}, r"prev_chunk: expected finite numbers"),
    "what the policy refuses": ({"prompt": "impossible"}, r"prompt: expected something possible, got 'impossible'"),
    "noise of nothing": ({"observe_only": True, "noise": np.zeros((2, 2))}, r"noise: has no effect with observe_only: true"),
    "an intervention without action": (
        {"observe_only": True, "intervention": True}, r"intervention: expected together with action, .*got it alone"
    ),
    "an action of nobody": ({"action": [0.0, 0.0]}, r"action: expected together with intervention: true"),
    "an intervention that asks": (
        {"intervention": True, "action": [0.0, 0.0]}, r"intervention: expected with observe_only: true"
    ),
    "a NaN correction": (
        {"observe_only": True, "intervention": True, "action": [0.0, np.nan]},
        r"action: expected finite numbers \(action dimensions,\), got shape \(2,\)",
    ),
    "a chunk as correction": (
        {"observe_only": True, "intervention": True, "action": np.zeros((2, 2))},
        r"action: expected finite numbers \(action dimensions,\), got shape \(2, 2\)",
    ),
    "an intervention in words": ({"observe_only": True, "intervention": "yes"}, r"intervention: expected true or false"),
    "observing without recorder": ({"observe_only": True}, r"observe_only: expected a server that records"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    from syvla.serving import PolicyServer
    from syvla.serving.server.settings import ServerSettings

    with PolicyServer(CountingPolicy(), ServerSettings(port=0, limits=SMALL)).start(120) as server:
        yield server


@pytest.fixture
def talk(server):
    with connect(f"ws://{server.url}", compression=None, max_size=None) as client:
        client.recv()
        yield client


def usable(talk, request_of) -> bool:
    talk.send(pack(request_of(seed=8)))
    return unpack(talk.recv(timeout=30))[0]["actions"][0, 0] == 8


def refused(server, body: bytes, kind: str = "application/msgpack") -> httpx.Response:
    return httpx.post(f"http://{server.url}/v1/act", content=body, headers={"Content-Type": kind})


@pytest.mark.parametrize("name", CASES)
def test_bad_requests_are_named_and_the_connection_goes_on(server, talk, request_of, name):
    changes, message = CASES[name]
    body = pack(request_of(**changes))
    talk.send(body)
    answer = talk.recv(timeout=30)
    assert isinstance(answer, str), "an error is a text frame"
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(answer)
    assert "Traceback" not in answer
    assert usable(talk, request_of)
    over_http = refused(server, body)
    assert over_http.status_code == 422
    assert over_http.json() == {"error": answer, "cause": "bad_request"}


def test_a_long_instruction_is_refused_before_it_is_tokenized(serve, request_of):
    server = serve()
    answer = refused(server, pack(request_of(prompt="go " * 350_000)))
    assert answer.status_code == 422
    assert answer.json()["error"] == "prompt: expected at most 4096 characters, got 1050000"


@pytest.mark.parametrize(
    "garbage", [b"", b"\xc1", b"hello", bytes(1000), b"\x81\xa1a", msgpack.packb([1, 2]), msgpack.packb(7)]
)
def test_garbage_is_refused(server, talk, request_of, garbage):
    talk.send(garbage)
    assert talk.recv(timeout=30).startswith(("message: expected", "request: expected a map"))
    assert usable(talk, request_of)
    for kind in ("application/msgpack", "application/json"):
        answer = refused(server, garbage, kind)
        assert answer.status_code == 422
        assert "expected" in answer.json()["error"]


def test_text_frames_and_other_content_types_are_refused(server, talk, request_of):
    talk.send('{"prompt": "lift"}')
    assert talk.recv(timeout=30) == "message: expected a binary frame of msgpack, got a text of 18 characters"
    assert usable(talk, request_of)
    answer = refused(server, b"prompt=lift", "application/x-www-form-urlencoded")
    assert answer.status_code == 422
    assert "content-type: expected application/json or application/msgpack" in answer.json()["error"]


def test_oversized_messages_are_skipped_and_the_connection_goes_on(server, talk, request_of):
    talk.send(bytes(3_000_000))
    assert talk.recv(timeout=30) == "message: expected at most 100000 bytes, got 3000000"
    assert usable(talk, request_of)
    talk.send(iter([bytes(200_000), bytes(10), bytes(10)]))  # in fragments
    assert talk.recv(timeout=30) == "message: expected at most 100000 bytes, got 200000"
    assert usable(talk, request_of)
    answer = refused(server, bytes(400_000))
    assert answer.status_code == 422
    assert answer.json()["error"] == "message: expected at most 100000 bytes, got 400000"


def test_an_endless_fragmented_message_is_cut_off(server, talk):
    with pytest.raises(ConnectionClosed) as closed:
        talk.send(bytes(60_000) for _ in range(10_000))
    assert closed.value.rcvd.code == 1009
    assert closed.value.rcvd.reason == "message: expected at most 100000 bytes, got more in fragments"
    assert talk.recv(timeout=30) == closed.value.rcvd.reason, "also as a text, which every client shows"


def test_large_arrays_and_images_are_refused_by_their_size(server, talk, request_of):
    talk.send(pack(request_of(**{"observation.images.center": np.zeros((130, 130, 3), np.uint8)})))
    assert talk.recv(timeout=30) == (
        "observation.images.center: shape: expected an array of at most 50000 bytes, got shape [130, 130, 3] of uint8"
    )
    assert usable(talk, request_of)


def test_decompression_bombs_are_refused(serve, request_of):
    bomb = io.BytesIO()
    Image.new("RGB", (3000, 3000)).save(bomb, "PNG")  # 27 MB of pixels in 30 kB
    request = request_of(**{"observation.images.center": bomb.getvalue()})
    answer = refused(serve(max_pixels=1_000_000), pack(request))
    assert answer.status_code == 422
    assert answer.json()["error"].endswith("expected an image of at most 1000000 pixels, got 3000 x 3000")


def test_depth_images_are_not_taken_for_colors(server, request_of):
    """16 bits per pixel would be cut at 255."""
    depth = io.BytesIO()
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(depth, "PNG")
    answer = refused(server, pack(request_of(**{"observation.images.center": depth.getvalue()})))
    assert answer.status_code == 422
    assert "observation.images.center: expected an image of 8 bits per channel, got one of mode" in answer.text


def test_messages_that_wait_for_the_server_are_not_too_slow(serve, request_of):
    """A client that sends ahead: its third message lies half in the socket while the server computes."""
    policy = CountingPolicy()
    server = serve(policy, read_timeout_s=1.0, max_batch_size=1, deadline_s=120)
    policy.hold()
    image = np.zeros((1000, 1000, 3), np.uint8)
    with connect(f"ws://{server.url}", compression=None, max_size=None) as talk, ThreadPoolExecutor(1) as pool:
        talk.recv()
        messages = [pack(request_of(seed=seed, **{"observation.images.center": image})) for seed in range(5)]
        sending = pool.submit(lambda: [talk.send(message) for message in messages])
        assert policy.running.wait(30)
        time.sleep(1.5)
        policy.release()
        assert [unpack(talk.recv(timeout=20))[0]["seed"] for _ in messages] == list(range(5))
        sending.result()


def test_what_fails_outside_the_batch_stays_inside_as_well(serve, request_of):
    class Forgetless(CountingPolicy):
        def forget(self, session: str) -> None:
            raise OSError("secret path /home/me")

    server = serve(Forgetless())
    with connect(f"ws://{server.url}", compression=None) as talk:
        talk.recv()
        talk.send(pack(request_of(reset=True)))
        assert talk.recv(timeout=20) == "server: the request failed; its log says why"
        assert server.service.metrics.value("rejected", "cause", "internal") == 1
        assert usable(talk, request_of)


def test_half_a_message_then_silence_ends_at_the_read_timeout(serve, request_of):
    """On a websocket and over HTTP; meanwhile others are answered."""
    server = serve(read_timeout_s=0.5)
    url = f"http://{server.url}"
    with connect(f"ws://{server.url}", compression=None) as half:
        half.recv()
        half.socket.sendall(b"\x82\xfe" + struct.pack(">H", 5000) + b"\0\0\0\0" + b"x" * 100)
        started = time.monotonic()
        assert http_act(url, request_of(seed=8))["seed"] == 8
        assert half.recv(timeout=30) == "message: expected the rest of it within 0.5 s"
        with pytest.raises(ConnectionClosed) as closed:
            half.recv(timeout=30)
        assert closed.value.rcvd.code == 1008
    assert time.monotonic() - started > 0.3
    head = b"POST /v1/act HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/msgpack\r\nContent-Length: 100\r\n\r\nhalf"
    assert b"408" in silent_socket(server, head).split(b"\r\n")[0]
    assert silent_socket(server, b"POST /v1/act HT") == b"", "half a request line: the connection is closed"
    assert silent_socket(server, b"") == b"", "nothing at all as well"
    assert http_act(url, request_of(seed=8))["seed"] == 8


def silent_socket(server, data: bytes) -> bytes:
    """What comes back, up to the end of the connection, after `data` and silence."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(data)
        answer = b""
        while part := raw.recv(65536):
            answer += part
            if b"Content-Length" not in data and answer:
                break
            if answer.endswith(b"}"):
                break
        return answer


def test_errors_inside_the_server_stay_inside(serve, request_of):
    server = serve()
    answer = refused(server, pack(request_of(prompt="break")))
    assert answer.status_code == 500
    assert answer.json() == {"error": "server: the policy failed; its log says why", "cause": "internal"}
    assert refused(server, pack(request_of())).status_code == 200


def test_actions_that_are_not_finite_are_never_sent(serve, request_of):
    server = serve()
    answer = refused(server, pack(request_of(prompt="nan")))
    assert answer.status_code == 500
    assert answer.json()["error"] == "actions: expected finite numbers, got nan for grip at step 3; nothing was sent"
    assert server.service.metrics.value("rejected", "cause", "unsafe_actions") == 1


def test_limits_are_applied_and_said(serve, request_of):
    limits = {"low": [None, -1], "high": [50, 50], "max_step": [10, None]}
    clamped = unpack(refused(serve(action_limits={"arm": limits}), pack(request_of(prompt="huge"))).content)[0]
    np.testing.assert_array_equal(clamped["actions"][:, 0], [3, 4, 14, 24, 34, 44])
    np.testing.assert_array_equal(clamped["actions"][:, 1], [3, 4, 50, 50, 50, 50])
    assert [note.split(",")[0] for note in clamped["limits_applied"]] == [
        "joint limit: shoulder",
        "joint limit: grip",
        "rate limit: shoulder",
    ]
    answer = refused(
        serve(action_limits={"arm": {**limits, "on_violation": "refuse"}}), pack(request_of(prompt="huge"))
    )
    assert answer.status_code == 500
    assert "joint limit: shoulder, 4 of 6 steps, by up to 950" in answer.json()["error"]


def test_json_requests_with_encoded_images(server, request_of):
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(image, "PNG")
    request = {
        "observation.images.center": {"png": base64.b64encode(image.getvalue()).decode()},
        "observation.state": [0.0, 1.0],
        "prompt": "lift",
        "seed": 5,
    }
    answer = refused(server, json.dumps(request).encode(), "application/json")
    assert answer.status_code == 200, answer.text
    assert answer.json()["actions"][0] == [5.0, 5.0]
    raw = {"data": base64.b64encode(bytes(48)).decode(), "dtype": "|u1", "shape": [4, 4, 3]}
    assert refused(
        server, json.dumps({**request, "observation.images.center": raw}).encode(), "application/json"
    ).is_success
    for bad, message in (
        ({**raw, "dtype": "|O"}, "observation.images.center: dtype: expected bool, int"),
        ({**raw, "shape": [4, 4, 4]}, "observation.images.center: data: expected 64 bytes"),
        ({"jpeg": "!!"}, "observation.images.center.jpeg: expected base64 text"),
        ({"png": base64.b64encode(image.getvalue()[:50]).decode()}, "observation.images.center: expected"),
        ("http://example.com/image.png", "observation.images.center: expected an array"),
    ):
        answer = refused(server, json.dumps({**request, "observation.images.center": bad}).encode(), "application/json")
        assert answer.status_code == 422
        assert answer.json()["error"].startswith(message)
    for bad, message in (
        ({"observation.state": [10**400, 1]}, "observation.state: expected (2,) numbers, got"),
        ({"deadline_ms": 10**400, "prompt": ""}, "prompt: expected an instruction"),
        ({"prev_chunk": [[10**400, 1]]}, "prev_chunk: expected numbers (steps, action dimensions)"),
        ({"prev_chunk": [[True, 0.5]]}, "prev_chunk: expected numbers (steps, action dimensions)"),
        ({"prev_chunk": [[1e13, 0.5]]}, "prev_chunk: expected numbers of at most 1e+12 in size, got one of 1e+13"),
        ({"prev_chunk": [["1", "2"]]}, "prev_chunk: expected numbers (steps, action dimensions)"),
        ({"prompt": "\ud800 lift"}, "message: expected whole Unicode characters"),
        ({"\ud800": 1}, "message: expected whole Unicode characters"),
    ):
        answer = refused(server, json.dumps({**request, **bad}).encode(), "application/json")
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"].startswith(message)
    twice = b'{"seed": 1, ' + json.dumps(request).encode()[1:]
    assert refused(server, twice, "application/json").json()["error"].startswith("message: expected every key once")
    deep = b"[" * 10_000 + b"]" * 10_000
    assert refused(server, deep, "application/json").status_code == 422
    assert refused(server, b'{"a": [' + b"1," * 40_000 + b"1]}", "application/json").status_code == 422
