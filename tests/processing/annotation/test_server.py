"""The page's routes: who may ask, what is refused, and what comes back."""

import io

import numpy as np
import pytest
from dataset_recordings import frame
from fastapi.testclient import TestClient
from PIL import Image

from syvla.processing.annotation.annotator import Annotator
from syvla.processing.annotation.episode_data import EpisodeData
from syvla.processing.annotation.proposals import Proposal
from syvla.processing.annotation.server import build_app


@pytest.fixture
def annotator(dataset):
    opened = Annotator(EpisodeData(dataset))
    yield opened
    opened.close()


@pytest.fixture
def client(annotator):
    return TestClient(build_app(annotator), "http://127.0.0.1:8765", raise_server_exceptions=False)


def change(client, **body):
    return client.post("/api/subtasks", json={"episode": 0, "revision": 0, "name": "mark", "subtasks": [], **body})


def test_the_page_stands_alone_and_holds_no_data(client):
    reply = client.get("/")
    assert reply.status_code == 200
    assert "src=" not in reply.text
    assert "href=" not in reply.text
    assert "@import" not in reply.text
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    assert "task 0" not in reply.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "10.0.0.7:8765", ""])
def test_another_host_than_this_machine_is_refused(client, host):
    for path in ("/", "/api/dataset"):
        assert client.get(path, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1", "[::1]:8765", "LOCALHOST"])
def test_this_machine_has_several_names(client, host):
    assert client.get("/api/dataset", headers={"Host": host}).status_code == 200


def test_other_pages_may_not_ask(client, annotator):
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1:8765"):
        assert client.get("/api/dataset", headers={"Origin": origin}).status_code == 403
        reply = client.post("/api/subtasks", json={"episode": 0, "revision": 0, "subtasks": [[0, "a"]]},
                            headers={"Origin": origin})  # fmt: skip
        assert reply.status_code == 403
    assert annotator.subtasks(0) == ()
    assert client.get("/api/dataset", headers={"Origin": "http://127.0.0.1:8765"}).status_code == 200


def test_a_token_guards_everything_but_the_page(annotator):
    client = TestClient(build_app(annotator, token="secret"), "http://robot.lab:8765")
    assert client.get("/").status_code == 200
    for sent in (None, "Bearer other", "secret", "Basic secret"):
        headers = {} if sent is None else {"Authorization": sent}
        assert client.get("/api/dataset", headers=headers).status_code == 401
    assert client.get("/api/dataset", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_a_change_is_answered_with_the_episode_as_it_is_now(client):
    reply = change(client, subtasks=[[2, "lift"], [0, "reach"]])
    assert reply.status_code == 200
    assert (reply.json()["subtasks"], reply.json()["revision"]) == ([[0, "reach"], [2, "lift"]], 1)
    assert reply.json()["texts"] == [["reach", 1], ["lift", 1]]
    assert client.get("/api/status").json()["undo"] == "mark"
    assert client.post("/api/step", json={"back": True}).json() == {"episodes": [0]}
    assert client.get("/api/episode?episode=0").json()["subtasks"] == []


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"episode": 3}, 422, "episode: expected a number from 0 to 2, got '3'"),
        ({"episode": -1}, 422, "episode: expected"),
        ({"episode": "²"}, 422, "episode: expected"),
        ({"revision": 5}, 409, "changed in another window"),
        ({"revision": None}, 422, "revision: expected"),
        ({"subtasks": [[5, "a"]]}, 422, "frame 5 does not exist"),
        ({"subtasks": "a"}, 422, "expected a list"),
        ({"name": 3}, 422, "name: expected a text"),
    ],
)
def test_what_is_no_change_is_refused(client, annotator, body, status, message):
    reply = change(client, **body)
    assert (reply.status_code, message in reply.json()["error"]) == (status, True)
    assert annotator.subtasks(0) == ()


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"{}", "text/plain", "content-type: expected application/json"),
        (b"[1]", "application/json", "body: expected a JSON object"),
        (b"[" * 100_000, "application/json", "body: expected a JSON object"),
        (b" " * (2**20 + 1), "application/json", "body: expected at most 1048576 bytes"),
        (b"\xff", "application/json", "body: expected a JSON object"),
    ],
)
def test_bodies_that_cannot_be_read_are_refused(client, content, kind, message):
    reply = client.post("/api/subtasks", content=content, headers={"Content-Type": kind})
    assert (reply.status_code, reply.json()["error"]) == (422, message)


def test_pictures_are_decoded_when_asked_for(client, annotator):
    camera = annotator.data.cameras[0]
    reply = client.get("/api/frame", params={"episode": 1, "frame": 6, "camera": camera, "side": 160})
    assert reply.headers["content-type"] == "image/jpeg"
    picture = np.asarray(Image.open(io.BytesIO(reply.content)))
    expected = frame(1, 6)[camera]
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).max() <= 3


@pytest.mark.parametrize(
    "wrong", [{"frame": 7}, {"camera": "../meta"}, {"side": 5000}, {"episode": 9}, {"camera": None}]
)
def test_pictures_that_do_not_exist_are_refused(client, annotator, wrong):
    query = {"episode": 1, "frame": 6, "camera": annotator.data.cameras[0], "side": 160, **wrong}
    reply = client.get("/api/frame", params={key: value for key, value in query.items() if value is not None})
    assert reply.status_code == 422


def test_a_damaged_file_is_named(client, annotator, dataset):
    path = dataset / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:100])
    reply = client.get("/api/frame", params={"episode": 0, "frame": 0, "camera": annotator.data.cameras[0]})
    assert reply.status_code == 500
    assert "file-000.parquet" in reply.json()["error"]


def test_the_list_comes_in_parts_and_by_what_is_to_do(client, annotator):
    annotator.change("mark", {1: [[0, "a"], [2, "b"]]})
    annotator.proposals.add(Proposal(2, "model", ((0, "c"),), ()))

    def listed(**query):
        found = client.get("/api/episodes", params=query).json()
        return found["total"], [row[0] for row in found["rows"]]

    assert client.get("/api/episodes").json()["rows"][1] == [1, 0.7, 1, 2, False, False]
    assert listed() == (3, [0, 1, 2])
    assert listed(start=1, count=1) == (3, [1])
    assert listed(show="open") == (2, [0, 2])
    assert listed(show="done") == (1, [1])
    assert listed(show="proposed") == (1, [2])
    assert listed(search="TASK 1") == (1, [1])
    assert listed(search="2") == (1, [2])
    assert client.get("/api/episodes?show=x").status_code == 422
    assert client.get("/api/episodes?count=5000").status_code == 422


def test_a_proposal_is_accepted_or_dismissed(client, annotator):
    annotator.proposals.add(Proposal(0, "model", ((0, "a"),), ("odd",)), Proposal(1, "model", ((0, "a"),), ()))
    assert client.get("/api/episode?episode=0").json()["proposal"] == {
        "source": "model", "subtasks": [[0, "a"]], "problems": ["odd"]}  # fmt: skip
    reply = client.post("/api/proposal", json={"episode": 0, "revision": 0, "accept": True}).json()
    assert (reply["subtasks"], reply["proposal"]) == ([[0, "a"]], None)
    reply = client.post("/api/proposal", json={"episode": 1, "accept": False}).json()
    assert (reply["subtasks"], reply["proposal"]) == ([], None)
    assert client.post("/api/proposal", json={"episode": 1, "accept": False}).status_code == 422


def test_unknown_actions_and_a_missing_vision_server_are_named(client):
    assert client.post("/api/reboot", json={}).status_code == 404
    reply = client.post("/api/ask", json={"episode": 0})
    assert (reply.status_code, "--server URL" in reply.json()["error"]) == (422, True)


def test_a_look_refuses_changes(dataset):
    looking = Annotator(EpisodeData(dataset), read_only=True)
    client = TestClient(build_app(looking), "http://127.0.0.1:8765")
    assert client.get("/api/dataset").json()["read_only"] is True
    for action in ("subtasks", "copy", "step", "proposal"):
        body = {"episode": 0, "revision": 0, "subtasks": [[0, "a"]], "targets": "1", "accept": True, "back": True}
        assert client.post(f"/api/{action}", json=body).status_code == 422, action
