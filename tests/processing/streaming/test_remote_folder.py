"""A distant folder over a real HTTP server: versions, whole downloads, and every way in which a link or a server fails."""

import gc
import io
import multiprocessing
import pickle
import threading
import time

import pytest

from benchmarks.throttled_server import FolderServer
from syvla.processing.streaming import remote_folder
from syvla.processing.streaming.remote_folder import FileMissingError, RemoteFolder, StreamingError

CONTENT = bytes(range(256)) * 40
NAME = "data/file-000.parquet"


@pytest.fixture
def server(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / NAME).write_bytes(CONTENT)
    monkeypatch.setattr(remote_folder, "PART_BYTES", 4000)
    monkeypatch.setattr(remote_folder, "_FIRST_PAUSE", 0.01)
    with FolderServer.running(tmp_path) as server:
        yield server


def download(server, patience=0.2) -> bytes:
    folder, file = RemoteFolder(server.url, patience=patience), io.BytesIO()
    folder.download(NAME, folder.version(NAME), file)
    return file.getvalue()


def test_a_file_arrives_whole_in_parts(server):
    assert download(server) == CONTENT
    assert server.link.bytes_sent == len(CONTENT)
    assert len(server.link.paths("GET")) == 3, "10240 bytes in parts of 4000"


def test_a_link_that_is_down_for_a_while_is_waited_for(server):
    server.link.down = True
    threading.Timer(0.3, setattr, (server.link, "down", False)).start()
    assert download(server, patience=30) == CONTENT


def test_a_body_that_is_cut_goes_on_at_the_part_at_which_it_broke(server, caplog):
    folder, file = RemoteFolder(server.url, patience=30), io.BytesIO()
    version = folder.version(NAME)
    server.link.cut_after = 2000
    thread = threading.Thread(target=folder.download, args=(NAME, version, file))
    thread.start()
    while "trying again" not in caplog.text:
        time.sleep(0.01)
    server.link.cut_after = None
    thread.join(30)
    assert file.getvalue() == CONTENT


def test_a_link_that_stays_down_ends_with_the_file(server):
    folder = RemoteFolder(server.url, patience=0.2)
    version = folder.version(NAME)
    server.link.down = True
    message = rf"{server.url}/{NAME}: .*; tried for 0.2 s. Check the link and the server, then resume the run"
    with pytest.raises(StreamingError, match=message):
        folder.download(NAME, version, io.BytesIO())
    with pytest.raises(StreamingError, match=message):
        folder.version(NAME)
    server.link.down, server.link.cut_after = False, 100
    with pytest.raises(StreamingError, match=message):
        folder.download(NAME, version, io.BytesIO())


@pytest.mark.parametrize("status", [401, 403])
def test_refused_access_is_said_at_once(server, status):
    server.link.status = status
    with pytest.raises(StreamingError, match=rf"{NAME}: the source refuses access \({status}\); log in .*HF_TOKEN"):
        download(server, patience=60)


def test_a_missing_file_is_said_at_once(server):
    with pytest.raises(FileMissingError, match=r"data/file-001.parquet: missing at the source \(404\)"):
        RemoteFolder(server.url, patience=60).version("data/file-001.parquet")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_is_busy_is_asked_again(server, status):
    server.link.status = status
    threading.Timer(0.2, setattr, (server.link, "status", None)).start()
    assert download(server, patience=30) == CONTENT


def test_a_file_that_changes_at_the_source_is_named(server, tmp_path):
    folder = RemoteFolder(server.url, patience=0.2)
    version = folder.version(NAME)
    (tmp_path / NAME).write_bytes(CONTENT[::-1])
    with pytest.raises(
        StreamingError, match=rf"{NAME}: changed at the source during the run, which began with 10240 bytes"
    ):
        folder.download(NAME, version, io.BytesIO())


def test_a_server_without_range_requests_is_named(server):
    server.link.ranges = False
    with pytest.raises(
        StreamingError, match="sent 10240 bytes for a range of 4000; streaming needs one that answers range"
    ):
        download(server)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///data/set", "is local; pass its path and leave streaming out"),
        ("/data/set", "is local"),
        ("https://me:secret@example.com/set", r"https://example.com/set carries credentials"),
        ("https://example.com/set?token=secret", "https://example.com/set carries credentials or a query"),
        ("s3://bucket/set", "needs a package: pip install 's3fs'"),
        ("nothing://bucket/set", "path: nothing://bucket/set: "),
    ],
)
def test_a_url_that_cannot_be_read_is_refused(url, message):
    with pytest.raises(StreamingError, match=message) as raised:
        RemoteFolder(url)
    assert "secret" not in str(raised.value)


def _ask_and_collect(folder):
    folder.version(NAME)
    gc.collect()


def test_a_forked_process_leaves_the_connections_of_its_parent_alone(server):
    folder = RemoteFolder(server.url)
    folder.version(NAME)  # leaves a connection open, which the next request takes
    child = multiprocessing.get_context("fork").Process(target=_ask_and_collect, args=(folder,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    found = []
    asking = threading.Thread(target=lambda: found.append(folder.version(NAME)), daemon=True)
    asking.start()
    asking.join(30)  # an answer that nobody waits for any more ends by a timeout of 60 s
    assert found, "the child took the parent's sockets out of its event loop"


def test_a_copy_in_another_process_connects_by_itself(server):
    folder = pickle.loads(pickle.dumps(RemoteFolder(server.url)))
    assert folder.version(NAME).size == len(CONTENT)
    assert folder.names_below("data") is None, "plain HTTP lists nothing"
