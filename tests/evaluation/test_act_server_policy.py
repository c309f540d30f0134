"""OpenVLA-OFT's HTTP protocol against a stand-in server that reads and writes json-numpy's published form itself."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import reach_environment
from reach_environment import ReachEnvironment

from syvla.evaluation.act_server_policy import ActServerPolicy
from syvla.evaluation.closed_loop import evaluate_closed_loop

reach_environment.register()


def json_numpy(array):
    data = base64.b64encode(array.tobytes()).decode()
    return {"__numpy__": data, "dtype": array.dtype.str, "shape": list(array.shape)}


class StandIn:
    """Answers with `answer(observation)`, JSON-serializable, or a status code."""

    def __init__(self, answer):
        self.requests = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                read = {}
                for key, value in body.items():
                    if isinstance(value, dict):
                        raw = base64.b64decode(value["__numpy__"])
                        value = np.frombuffer(raw, np.dtype(value["dtype"])).reshape(value["shape"])
                    read[key] = value
                stand_in.requests.append(read)
                reply = answer(read)
                status, content = (reply, b"busy") if isinstance(reply, int) else (200, json.dumps(reply).encode())
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/act"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def actions(count=3):
    width = ReachEnvironment().action_space.shape[0]
    return np.arange(count * width, dtype=np.float32).reshape(count, width) / 10


@pytest.mark.parametrize(
    "form",
    [
        lambda a: [json_numpy(row) for row in a],  # what the server sends: a list of arrays
        lambda a: json_numpy(a.astype(np.float64)),
        lambda a: json.dumps(json_numpy(a)),  # its double encoding
        lambda a: a.tolist(),
    ],
)
def test_actions_arrive_in_every_form_that_the_server_writes(form):
    env = ReachEnvironment()
    with StandIn(lambda observation: form(actions())) as server:
        policy = ActServerPolicy(server.url, env)
        observation, _ = env.reset(seed=1)
        answer = policy.predict([observation], ["reach"], seeds=[0])
    assert policy.chunk_size == 3
    assert np.allclose(answer.actions[0], actions())
    request = server.requests[-1]
    assert request["instruction"] == "reach"
    assert request["full_image"].dtype == np.uint8
    assert np.array_equal(request["full_image"], observation["images"][env.view_cameras["center"]])
    assert np.allclose(request["state"], observation["state"])


def test_it_is_evaluated_like_any_other_policy_by_its_address():
    with StandIn(lambda observation: json_numpy(actions(4))) as server:
        options = {"policy_options": {"prompt": "go"}, "progress": False, "episodes": 1}
        result = evaluate_closed_loop(server.url, "reach", "near", **options)
    assert result.settings["replan_steps"] == 4
    assert (result.settings["url"], result.settings["prompt"]) == (server.url, "go")
    assert {request["instruction"] for request in server.requests} == {"go"}


def test_openvlas_gripper_is_turned_into_liberos():
    """There 0 closes and 1 opens; LIBERO closes at +1 and opens at -1."""
    chunk = np.zeros_like(actions(2))
    chunk[:, -1] = [0.0, 1.0]
    with StandIn(lambda observation: json_numpy(chunk)) as server:
        policy = ActServerPolicy(server.url, ReachEnvironment(), gripper="openvla")
        observation, _ = ReachEnvironment().reset(seed=1)
        read = policy.predict([observation], [""], seeds=[0]).actions
    assert read[0, :, -1].tolist() == [1.0, -1.0]


def test_cameras_are_called_as_openvla_oft_calls_them():
    one = ActServerPolicy._keys({"center": "agentview", "left_wrist": "robot0_eye_in_hand"})
    assert one == {"agentview": "full_image", "robot0_eye_in_hand": "wrist_image"}
    two = ActServerPolicy._keys({"center": "top", "left_wrist": "l", "right_wrist": "r"})
    assert two == {"top": "full_image", "l": "left_wrist_image", "r": "right_wrist_image"}


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        ("error", RuntimeError, "the server failed on this request"),
        (500, RuntimeError, "HTTP 500: busy"),
        ([], ValueError, r"actions: expected numbers \(T, D\), got \(0,\)"),
        ({"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}, ValueError, "expected actions in json-numpy"),
        ({"__numpy__": "AAAA", "dtype": "<f4", "shape": [10**9, 7]}, ValueError, "expected actions in json-numpy"),
        ({"actions": [1]}, ValueError, "expected actions in json-numpy"),
        ("hello", ValueError, "expected actions in json-numpy"),
    ],
)
def test_other_replies_are_named(reply, error, message):
    with StandIn(lambda observation: reply) as server, pytest.raises(error, match=message):
        ActServerPolicy(server.url, ReachEnvironment())


def test_what_the_protocol_lacks_is_refused_and_nobody_is_named():
    with pytest.raises(ValueError, match="has no place for num_steps, think"):
        ActServerPolicy("http://127.0.0.1:1/act", ReachEnvironment(), think=True, num_steps=3, connections=1)
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1/act: no answer within 1 s"):
        ActServerPolicy("http://127.0.0.1:1/act", ReachEnvironment(), timeout=1.0)
