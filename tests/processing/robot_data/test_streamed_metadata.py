"""Where a streamed dataset is found: the Hub with a pinned commit, and protocols that list their folders."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import fsspec
import pytest

from syvla.processing.robot_data.robot_dataset import RobotDataset
from syvla.processing.robot_data.streamed_dataset import StreamedRobotDataset
from syvla.processing.robot_data.streamed_metadata import locate_streamed
from syvla.processing.streaming.remote_folder import StreamingError

V3 = Path(__file__).parents[2] / "data" / "lerobot_v3_tiny"
CAMERAS = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}
COMMIT = "c" * 40


class HubHandler(BaseHTTPRequestHandler):
    """The endpoints that reading a dataset repository asks for; org/set and org/wrong have a tag v3.0 and LFS files.

    org/wrong lists digests of other bytes, and org/private refuses everybody.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Silent."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer({"error": "not used"}, 404)

    def do_GET(self):
        path = unquote(self.path.split("?")[0])
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        if "/org/private" in path:
            return self.answer({"error": "log in"}, 401)
        if found := re.fullmatch(r"/api/datasets/org/(?:set|wrong)/revision/(.+)", path):
            if found[1] not in ("v3.0", COMMIT):
                return self.answer({"error": "no"}, 404, (("X-Error-Code", "RevisionNotFound"),))
            return self.answer(
                {"_id": "1", "id": "org/set", "sha": COMMIT, "private": False, "tags": [], "downloads": 0}
            )
        if found := re.fullmatch(rf"/api/datasets/org/(?:set|wrong)/tree/{COMMIT}(?:/(.*))?", path):
            return self.answer(self.tree(found[1] or ""))
        if (found := re.fullmatch(rf"/datasets/org/(?:set|wrong)/resolve/{COMMIT}/(.+)", path)) and (
            V3 / found[1]
        ).is_file():
            return self.file((V3 / found[1]).read_bytes())
        return self.answer({"error": "not found"}, 404, (("X-Error-Code", "EntryNotFound"),))

    do_HEAD = do_GET

    def tree(self, folder):
        entries = sorted((V3 / folder).rglob("*") if "recursive=true" in self.path.lower() else (V3 / folder).iterdir())
        return [self.entry(path) for path in entries]

    def entry(self, path):
        name = path.relative_to(V3).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "d" * 40, "size": 0}
        data = path.read_bytes()
        digest = "0" * 64 if "/org/wrong/" in self.path else hashlib.sha256(data).hexdigest()
        lfs = {"lfs": {"oid": digest, "size": len(data), "pointerSize": 130}} if not name.startswith("meta") else {}
        return {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data), **lfs}

    def file(self, data):
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        part = data[int(asked[1]) : int(asked[2]) + 1] if asked else data
        self.answer(part, 206 if asked else 200, (("ETag", '"1"'), ("X-Repo-Commit", COMMIT)))

    def answer(self, value, status=200, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from syvla.processing.robot_data.streamed_dataset import StreamedRobotDataset
cache, cameras, asked = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
found = []
for path, options in asked:
    try:
        data = StreamedRobotDataset(path, embodiment="toy", cameras=cameras, chunk_size=3, cache_gb=0.01, cache_dir=cache,
                                    patience=0.5, **options)
        items = [data[index] for index in range(len(data))]
    except (OSError, ValueError) as error:
        found.append(f"{type(error).__name__}: {error}")
    else:
        sums = [int(item["images"]["left_wrist"].sum()) for item in items]
        found.append([data.url, [item["state"].tolist() for item in items], sums])
print(json.dumps(found))
"""


def test_a_hub_dataset_is_streamed_at_a_pinned_commit_and_what_is_wrong_with_one_is_named(hub, tmp_path):
    asked = [("org/set", {}), ("org/set", {"revision": "v9"}), ("org/wrong", {}), ("org/private", {})]
    # In a process of its own: the Hub's address is read when its client is imported.
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "cache"), json.dumps(CAMERAS), json.dumps(asked)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (url, states, sums), revision, wrong, private = json.loads(done.stdout.splitlines()[-1])
    local = RobotDataset(V3, embodiment="toy", cameras=CAMERAS, chunk_size=3)
    assert url == f"hf://datasets/org/set@{COMMIT}"
    assert states == [local[index]["state"].tolist() for index in range(len(local))]
    assert sums == [int(local[index]["images"]["left_wrist"].sum()) for index in range(len(local))]
    data = "data/chunk-000/file-000.parquet"
    ranges = {given for _, path, given in hub.asked if given and path.endswith(data)}
    assert ranges == {f"bytes=0-{(V3 / data).stat().st_size - 1}"}, "nothing beyond the file is read ahead"
    assert revision.startswith("ValueError: org/set: the Hub dataset has no revision 'v9'")
    assert f"{data}: the bytes that arrived are not those that the source lists" in wrong
    assert "org/private: the Hub cannot be asked for the dataset" in private


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    for path in V3.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/bucket/set/{path.relative_to(V3).as_posix()}", path.read_bytes())
    yield system
    system.rm("/bucket", recursive=True)


def test_a_protocol_that_lists_folders_is_streamed(memory, tmp_path):
    options = {"embodiment": "toy", "cameras": CAMERAS, "chunk_size": 3}
    data = StreamedRobotDataset("memory://bucket/set", cache_dir=tmp_path, cache_gb=0.01, **options)
    local = RobotDataset(V3, **options)
    assert [data[i]["state"].tolist() for i in range(len(data))] == [
        local[i]["state"].tolist() for i in range(len(local))
    ]
    assert data.root.name == "set", "logs name the dataset by its folder"
    assert sorted(path.name for path in (data.root / "meta").iterdir()) == sorted(
        path.name for path in (V3 / "meta").iterdir()
    )


def test_another_state_of_the_source_has_metadata_of_its_own(memory, tmp_path):
    first = locate_streamed("memory://bucket/set", cache_dir=tmp_path)
    content = json.loads(memory.cat_file("/bucket/set/meta/info.json"))
    memory.pipe_file("/bucket/set/meta/info.json", json.dumps({**content, "robot_type": "another"}).encode())
    second = locate_streamed("memory://bucket/set", cache_dir=tmp_path)
    assert first.state != second.state
    assert json.loads((second.root / "meta/info.json").read_text())["robot_type"] == "another"


@pytest.mark.parametrize(
    ("path", "options", "error", "message"),
    [
        (
            "memory://bucket/empty",
            {},
            StreamingError,
            "meta/info.json: missing at the source; is this the folder of a LeRobot",
        ),
        ("hf://datasets/org", {}, ValueError, "expected hf://datasets/organization/name"),
        (
            "hf://datasets/org/set@v3.0",
            {"revision": "v2.1"},
            ValueError,
            "revision: 'v2.1', but hf://datasets/org/set@v3.0",
        ),
        ("nowhere", {}, FileNotFoundError, "nowhere: no such folder; streaming reads a Hub dataset"),
        ("org/set", {}, StreamingError, "org/set: streaming needs the Hub, and HF_HUB_OFFLINE is set"),
    ],
)
def test_what_is_no_source_is_refused(memory, tmp_path, monkeypatch, path, options, error, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=re.escape(message)):
        locate_streamed(path, cache_dir=tmp_path, **options)
