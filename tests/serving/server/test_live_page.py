"""`/`: what a person beside the robot sees and changes, who may, and what `/metrics` counts of the robot's side."""

import json
import re
import urllib.error
import urllib.request

import numpy as np
import pytest
from rl_robot import until
from served_policies import CountingPolicy

from syvla.serving import ChunkExecutor, PolicyClient, Watchdog
from syvla.serving.server.live_view import PICTURE_SIDE

IMAGES = {"center": np.full((300, 400, 3), 90, np.uint8)}


def fetch(server, path, body=None, **headers):
    """Status, headers and text, as a browser would ask."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{server.url}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def status(server, **headers):
    return json.loads(fetch(server, "/live/status", **headers)[2])


class Robot:
    """An executor that steps; its policy's actions are seed + t."""

    def __init__(self, server, limits=None, **options):
        self.client = PolicyClient(server.url, **options)
        self.executor = ChunkExecutor(self.client, 4, watchdog=Watchdog(max_wait_s=60.0), limits=limits)
        self.commands, self.clamped = [], []

    def step(self, prompt="lift", seed=3):
        command = self.executor.step(IMAGES, np.zeros(2, np.float32), prompt, seed=seed)
        self.commands.append(command)
        self.clamped.append(command != self.executor.report.action)

    def close(self):
        self.executor.close()
        self.client.close()


@pytest.fixture
def robot_of():
    robots = []

    def make(server, **options):
        robots.append(Robot(server, **options))
        return robots[-1]

    yield make
    for robot in robots:
        robot.close()


def test_the_page_stands_alone_and_holds_no_data(serve):
    code, headers, text = fetch(serve(token="secret"), "/")
    assert code == 200, "open, since it asks for the token itself"
    assert not re.findall(r"(?<!www\.w3\.org/2000)https?://(?!www\.w3\.org/2000/svg)|src=|href=|@import|url\(", text)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_token_host_and_origin_guard_what_the_page_asks_for(serve):
    server = serve(token="secret")
    own = {"Origin": f"http://{server.url}"}
    for path, body in (("/live/status", None), ("/live/instruction", {"session": "a", "instruction": "b"})):
        assert fetch(server, path, body)[0] == 401
        assert fetch(server, path, body, Authorization="Bearer secret", Origin="http://evil.example")[0] == 403
    assert fetch(server, "/live/status", **own, Authorization="Bearer secret")[0] == 200
    open_one = serve()
    for path in ("/", "/live/status"):
        assert fetch(open_one, path, Host=f"evil.example:{open_one.port}")[0] == 421
    assert fetch(open_one, "/live/status", Origin="null")[0] == 403


def test_the_page_gets_what_the_robot_executed_and_what_limits_changed(serve, robot_of):
    limits = {"arm": {"high": [7.0, None], "max_step": [None, 0.5]}}
    server = serve(action_limits=limits, think=True)
    status(server)  # somebody watches
    robot = robot_of(server, limits={"max_step": [None, 0.25]})
    for _ in range(9):
        robot.step()
    found = status(server)["shown"]
    np.testing.assert_allclose(
        found["executed"], robot.commands[:8], atol=1e-5
    )  # the ninth runs after the last request
    assert found["limited"] == np.stack(robot.clamped[:8]).tolist()
    assert np.stack(robot.clamped[:8]).any()
    assert (found["executed_begin"], found["chunk_begin"]) == (0, 8)
    chunk = np.minimum(3 + np.arange(6), 7)
    np.testing.assert_allclose(np.array(found["chunk"])[:, 0], chunk)
    assert np.array(found["clamped"])[:, 0].tolist() == [False] * 5 + [True]
    assert (found["low"], found["high"]) == ([None, None], [7.0, None])
    assert found["names"] == ["shoulder", "grip"]
    assert found["thought"].startswith("thought for lift")
    assert (found["asked"], found["instead"]) == ("lift", None)
    assert found["counts"]["steps"] == 8
    assert found["latency_s"] > 0
    assert found["pictures"]["center"].startswith("data:image/jpeg;base64,")
    assert "rate limit: grip" in " ".join(found["notes"])


def test_nobody_s_pictures_are_kept_while_nobody_watches(serve, robot_of):
    server = serve()
    robot = robot_of(server)
    robot.step()
    (shown,) = server.service.live._sessions.values()
    assert shown.pictures == {}
    status(server)
    for _ in range(4):
        robot.step()
    (shown,) = server.service.live._sessions.values()
    assert max(shown.pictures["center"].shape[:2]) <= PICTURE_SIDE


def test_an_instruction_of_the_page_holds_until_the_client_gives_a_new_one(serve, robot_of):
    policy = CountingPolicy()
    server = serve(policy, session_timeout_s=2.0)
    robot = robot_of(server)

    def told(prompt="lift"):
        for _ in range(4):
            robot.step(prompt)
        return policy.batches[-1][0].instruction, robot.executor.last_reply.get("instruction")

    assert told() == ("lift", None)
    session = status(server)["session"]
    assert fetch(server, "/live/instruction", {"session": session, "instruction": "drop it"})[0] == 200
    assert told() == ("drop it", "drop it")
    assert status(server)["shown"]["instead"] == "drop it"
    assert told("push") == ("push", None)
    assert told("lift") == ("lift", None)
    fetch(server, "/live/instruction", {"session": session, "instruction": "drop it"})
    fetch(server, "/live/instruction", {"session": session, "instruction": None})
    assert told() == ("lift", None)
    robot.close()
    until(lambda: status(server)["sessions"] == [], 30)
    assert fetch(server, "/live/instruction", {"session": session, "instruction": "drop it"})[0] == 404


@pytest.mark.parametrize(
    "body",
    [[], {"session": "a"}, {"session": 1, "instruction": "b"}, {"session": "a", "instruction": " "},
     {"session": "a", "instruction": "b\x00"}, {"session": "a", "instruction": "b" * 1001}],
)  # fmt: skip
def test_what_is_no_instruction_is_refused(serve, body):
    code, _, text = fetch(serve(), "/live/instruction", body)
    assert code == 422
    assert "expected" in text


def test_rollouts_of_a_run_keep_their_instruction(serve_run):
    server = serve_run()
    assert not status(server)["editable"]
    assert fetch(server, "/live/instruction", {"session": "a", "instruction": "b"})[0] == 409


def test_metrics_count_steps_seams_clamps_and_ages_once(serve, robot_of, request_of):
    server = serve()
    robot = robot_of(server, limits={"max_step": [0.5, 0.5]})
    for _ in range(9):
        robot.step()
    metrics = server.service.metrics
    counts = status(server)["shown"]["counts"]
    assert metrics.value("client_steps", "source", "chunk") == counts["chunk"] == 8
    assert metrics.value("client_limited") == counts["limited"] > 0
    assert metrics.value("client_seams") == counts["seams"]
    report = {"counts": {"steps": 5, "hold": 5}, "chunk_age_s": 0.2, "seam": 0.02}
    for _ in range(2):  # the same report again, as after a lost answer
        robot.client.infer(request_of(client_report=report, session_id="other"))
    assert metrics.value("client_steps", "source", "hold") == 5
    page = fetch(server, "/metrics")[2]
    assert 'syvla_client_steps_total{source="hold"} 5.0' in page
    assert "syvla_client_chunk_age_seconds_count" in page


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (3, "client_report: expected a map"),
        ({"speed": 1}, "client_report: expected a map"),
        ({"counts": {"steps": -1}}, "client_report.counts"),
        ({"counts": {"jumps": 1}}, "client_report.counts"),
        ({"first": 1.5}, "client_report.first"),
        ({"executed": [[np.nan, 0.0]], "limited": [[False, False]]}, "client_report.executed: expected finite"),
        ({"executed": [[0.0], [0.0, 1.0]]}, "client_report.executed"),
        ({"executed": [[True, 1.0]]}, "client_report.executed"),
        ({"executed": [[0.0, 1.0]], "limited": [[True]]}, "client_report.limited"),
        ({"chunk_age_s": -1.0}, "client_report.chunk_age_s"),
    ],
)
def test_what_is_no_report_is_refused(serve, request_of, report, message):
    with PolicyClient(serve().url) as client, pytest.raises(RuntimeError, match=message):
        client.infer(request_of(client_report=report))


def test_a_person_sees_the_robot_and_tells_it_something_else(serve, robot_of, open_page, tmp_path):
    policy = CountingPolicy()
    server = serve(policy, token="secret", think=True, action_limits={"arm": {"high": [6.0, None]}})
    robot = robot_of(server, token="secret")
    for _ in range(5):
        robot.step()
    page = open_page(f"http://{server.url}/")
    until(lambda: page.value("!document.getElementById('access').hidden"), 60)
    page.value("document.getElementById('token').value = 'secret'; document.getElementById('use').click()")
    until(lambda: page.value("document.querySelectorAll('#joints svg').length") == 2, 60)
    for _ in range(4):
        robot.step()
    until(lambda: page.value("document.querySelectorAll('#views img').length") == 1, 60)
    until(lambda: page.value("document.getElementById('steps').textContent") == "8", 60)
    assert page.value("document.getElementById('instruction').value") == "lift"
    assert "thought for lift" in page.value("document.getElementById('thought').textContent")
    assert page.value("document.querySelectorAll('#joints .ran').length") == 2
    assert page.value("document.querySelectorAll('.joint:first-child .clamp').length") > 0
    assert page.value("document.querySelectorAll('.joint:last-child .clamp').length") == 0
    page.value(
        "const field = document.getElementById('instruction'); field.value = 'put it <b>down</b>'; "
        "field.dispatchEvent(new Event('input')); document.getElementById('send').click()"
    )
    until(lambda: "holds from" in page.value("document.getElementById('message').textContent"), 60)
    for _ in range(4):
        robot.step()
    assert policy.batches[-1][0].instruction == "put it <b>down</b>"
    until(lambda: "put it <b>down</b>" in page.value("document.getElementById('thought').textContent"), 60)
    assert page.value("document.querySelectorAll('#thought b').length") == 0, "text of others is never markup"
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 5000
