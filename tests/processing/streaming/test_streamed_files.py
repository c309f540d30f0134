"""Files of a source through the cache: one version for the whole run, in every process."""

import multiprocessing

import pytest

from benchmarks.throttled_server import FolderServer
from syvla.processing.streaming.file_cache import FileCache
from syvla.processing.streaming.remote_folder import RemoteFolder, StreamingError
from syvla.processing.streaming.streamed_files import StreamedFiles

NAME, OTHER = "data/file-000.parquet", "data/file-001.parquet"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source/data").mkdir(parents=True)
    for number, name in enumerate((NAME, OTHER)):
        (tmp_path / "source" / name).write_bytes(bytes([number]) * 600)
    with FolderServer.running(tmp_path / "source") as server:
        yield server


def open_files(source, folder, limit=1000, state="state") -> StreamedFiles:
    return StreamedFiles(RemoteFolder(source.url, patience=0.2), FileCache(folder, limit), state)


def content(files: StreamedFiles, name: str = NAME) -> bytes:
    with files.lease(name) as path:
        return path.read_bytes()


def test_a_file_comes_from_the_cache_the_second_time(source, tmp_path):
    files = open_files(source, tmp_path / "cache")
    assert content(files) == content(files) == bytes(600)
    assert source.link.requests == [("HEAD", NAME), ("GET", NAME)]
    assert files.size(NAME) == 600


def test_a_later_run_takes_what_is_there_and_asks_for_the_version_once(source, tmp_path):
    content(open_files(source, tmp_path / "cache"))
    assert content(open_files(source, tmp_path / "cache")) == bytes(600)
    assert source.link.paths("GET") == [NAME]
    assert source.link.paths("HEAD") == [NAME, NAME]


def test_a_file_of_another_state_or_version_is_never_taken_from_the_cache(source, tmp_path):
    content(open_files(source, tmp_path / "cache"))
    (tmp_path / "source" / NAME).write_bytes(b"9" * 600)
    assert content(open_files(source, tmp_path / "cache")) == b"9" * 600, "the same size, another ETag"
    assert content(open_files(source, tmp_path / "cache", state="other")) == b"9" * 600
    assert source.link.paths("GET") == [NAME] * 3


def test_a_file_that_changes_during_the_run_is_named_when_it_is_fetched_again(source, tmp_path):
    files = open_files(source, tmp_path / "cache")
    content(files)
    content(files, OTHER)  # there is room for one
    (tmp_path / "source" / NAME).write_bytes(b"9" * 600)
    with pytest.raises(StreamingError, match=f"{NAME}: changed at the source during the run"):
        content(files)


def _read_in_a_process(files, results):
    try:
        results.put(content(files))
    except StreamingError as error:
        results.put(str(error))


def test_all_processes_of_a_run_agree_on_the_versions(source, tmp_path):
    files = open_files(source, tmp_path / "cache")
    assert files.size(NAME) == 600
    (tmp_path / "source" / NAME).write_bytes(b"9" * 600)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_read_in_a_process, args=(files, results))
    process.start()
    found = results.get(timeout=60)
    process.join(60)
    assert isinstance(found, str), "the process took the version that this one does not know"
    assert "changed at the source during the run" in found
