"""The cache on disk: never above its bound, no file removed in use, no part of a file visible, whatever is killed."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from contextlib import ExitStack

import pytest
from small_disk import small_disk

from syvla.processing.streaming import file_cache
from syvla.processing.streaming.file_cache import CacheEntry, CacheError, FileCache

SIZE = 1000


def entry(number: int, size: int = SIZE) -> CacheEntry:
    return CacheEntry(f"file-{number}", size, f"data/file-{number}.parquet")


def writes(number: int, size: int = SIZE, calls: list | None = None):
    def fetch(file):
        if calls is not None:
            calls.append(number)
        file.write(bytes([number]) * size)

    return fetch


def names(cache: FileCache) -> set[str]:
    return {path.name for path in (cache.folder / "files").iterdir()}


def test_a_file_is_fetched_once_and_read_whole(tmp_path):
    cache, calls = FileCache(tmp_path, 10 * SIZE), []
    for _ in range(3):
        with cache.lease(entry(1), writes(1, calls=calls)) as path:
            assert path.read_bytes() == b"\1" * SIZE
    assert calls == [1]
    assert cache.stored_bytes() == SIZE


def test_what_was_used_longest_ago_goes_first(tmp_path):
    cache = FileCache(tmp_path, 3 * SIZE)
    for number in (1, 2, 3, 1, 4):
        with cache.lease(entry(number), writes(number)):
            pass
    assert names(cache) == {"file-1", "file-3", "file-4"}, "2 was used longest ago"


def test_without_touching_the_order_of_fetching_counts(tmp_path):
    cache = FileCache(tmp_path, 3 * SIZE)
    for number in (1, 2, 3, 1, 4):
        with cache.lease(entry(number), writes(number), touch=False):
            pass
    assert names(cache) == {"file-2", "file-3", "file-4"}


def test_a_file_in_use_is_not_removed_and_waits_for_room_end_when_it_is_let_go(tmp_path):
    cache = FileCache(tmp_path, 2 * SIZE)
    with ExitStack() as held:
        for number in (1, 2):
            held.enter_context(cache.lease(entry(number), writes(number)))
        done = threading.Event()

        def third():
            with cache.lease(entry(3), writes(3)):
                done.set()

        thread = threading.Thread(target=third)
        thread.start()
        assert not done.wait(0.3), "there was no room"
        assert names(cache) == {"file-1", "file-2"}
    thread.join(10)
    assert done.is_set()
    assert cache.stored_bytes() <= 2 * SIZE


def test_no_room_for_long_is_an_error_that_names_the_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(file_cache, "WAIT_SECONDS", 0.1)
    cache = FileCache(tmp_path, 2 * SIZE)
    with (
        cache.lease(entry(1, 2 * SIZE), writes(1, 2 * SIZE)),
        pytest.raises(CacheError, match=r"cache_gb: data/file-2.parquet .* found no room .* in use; raise cache_gb"),
        cache.lease(entry(2), writes(2)),
    ):
        pass


def test_a_file_beyond_the_bound_is_refused_by_name(tmp_path):
    cache = FileCache(tmp_path, 10 * SIZE)
    with (
        pytest.raises(
            CacheError, match=r"cache_gb: data/file-7.parquet has 1.1e-05 GB, more than the whole cache of 1e-05"
        ),
        cache.lease(entry(7, 11 * SIZE), writes(7, 11 * SIZE)),
    ):
        pass
    assert cache.stored_bytes() == 0


def test_a_download_that_breaks_leaves_nothing(tmp_path):
    cache = FileCache(tmp_path, 10 * SIZE)

    def breaks(file):
        file.write(b"x" * 10)
        assert not names(cache), "a part is visible"
        assert cache.stored_bytes() == SIZE, "its room is taken"
        raise ConnectionError("the link broke")

    with pytest.raises(ConnectionError), cache.lease(entry(1), breaks):
        pass
    assert cache.stored_bytes() == 0
    with (
        pytest.raises(CacheError, match="10 of 1000 bytes arrived"),
        cache.lease(entry(1), lambda file: file.write(b"x" * 10)),
    ):
        pass
    assert cache.stored_bytes() == 0
    with cache.lease(entry(1), writes(1)) as path:
        assert path.read_bytes() == b"\1" * SIZE


def test_a_full_disk_is_named_with_the_setting(tmp_path):
    with small_disk(tmp_path / "small", "64k") as folder:
        cache = FileCache(folder, 10**6)
        full = r"cache_dir: the disk of .*small is full: data/file-1.* lower cache_gb"
        with pytest.raises(CacheError, match=full), cache.lease(entry(1, 10**5), writes(1, 10**5)):
            pass
        assert cache.stored_bytes() == 0
        with cache.lease(entry(2), writes(2)) as path:
            assert path.read_bytes() == b"\2" * SIZE


def test_two_bounds_for_one_folder_are_refused_while_it_is_used(tmp_path):
    first = FileCache(tmp_path, 3 * SIZE)
    for number in (1, 2, 3):
        with first.lease(entry(number), writes(number)):
            pass
    with pytest.raises(
        CacheError, match=r"cache_gb: 1e-06 here, but 3e-06 of a run or dataset that is using .*cache_dir"
    ):
        FileCache(tmp_path, SIZE)
    FileCache(tmp_path, 3 * SIZE)
    del first
    assert FileCache(tmp_path, SIZE).stored_bytes() <= SIZE, "the lower bound of a later run holds from its start"


def test_a_damaged_file_is_fetched_again(tmp_path):
    cache = FileCache(tmp_path, 3 * SIZE)
    with cache.lease(entry(1), writes(1)) as path:
        pass
    path.write_bytes(b"cut")
    with cache.lease(entry(1), writes(1)) as path:
        assert path.read_bytes() == b"\1" * SIZE


def _download_and_die(folder, limit):
    def fetch(file):
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    with FileCache(folder, limit).lease(entry(1, 2 * SIZE), fetch):
        pass


def test_a_killed_download_leaves_no_lock_no_file_and_no_lost_room(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_download_and_die, args=(tmp_path, 2 * SIZE))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "partial" / "file-1").is_file(), "it died in the middle"
    cache = FileCache(tmp_path, 2 * SIZE)
    assert cache.stored_bytes() == 0
    for number in (2, 3, 1):
        with cache.lease(entry(number), writes(number)) as path:
            assert path.read_bytes() == bytes([number]) * SIZE
    assert names(cache) == {"file-1", "file-3"}


def _read_many(cache, seed, results):
    import numpy as np

    order = np.random.default_rng(seed).integers(0, 12, 60).tolist()
    fetched: list[int] = []
    wrong = 0
    for number in order:
        with cache.lease(entry(number), writes(number, calls=fetched)) as path:
            wrong += path.read_bytes() != bytes([number]) * SIZE
            wrong += not path.exists()
    results.put((wrong, len(fetched)))


def test_processes_share_the_cache_and_its_bound(tmp_path):
    context, limit = multiprocessing.get_context("fork"), 5 * SIZE
    cache = FileCache(tmp_path, limit)
    results = context.Queue()
    processes = [context.Process(target=_read_many, args=(cache, seed, results)) for seed in range(3)]
    for process in processes:
        process.start()
    largest = 0
    while any(process.is_alive() for process in processes):
        largest = max(largest, cache.stored_bytes())
        time.sleep(0.001)
    found = [results.get(timeout=30) for _ in processes]
    assert [wrong for wrong, _ in found] == [0, 0, 0], "a file was not what it should be, or went while it was read"
    assert 0 < largest <= limit
    assert sum(fetched for _, fetched in found) >= 12


def test_files_of_one_name_are_fetched_once_by_threads_that_ask_together(tmp_path):
    cache, calls = FileCache(tmp_path, 5 * SIZE), []

    def slow(file):
        calls.append(1)
        time.sleep(0.1)
        file.write(b"\1" * SIZE)

    def ask():
        with cache.lease(entry(1), slow) as path:
            assert path.read_bytes() == b"\1" * SIZE

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


def test_a_pickled_cache_is_the_same_cache(tmp_path):
    cache = FileCache(tmp_path, 5 * SIZE)
    with cache.lease(entry(1), writes(1)):
        pass
    other = pickle.loads(pickle.dumps(cache))
    with other.lease(entry(1), lambda file: pytest.fail("it is there")) as path:
        assert path.read_bytes() == b"\1" * SIZE
