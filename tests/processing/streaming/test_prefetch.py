"""Files fetched ahead: those of the coming batches, in their order, within the window, and nothing of what is skipped."""

import threading
import time

import pytest

from syvla.processing.mixture import MixtureBatchSampler
from syvla.processing.streaming.prefetch import LookAheadBatchSampler


class Files:
    """Remembers what is fetched; every file has 10 bytes."""

    planned = False

    def __init__(self):
        self.fetched = []
        self.wake = threading.Condition()

    def size(self, name):
        if name == "broken":
            raise OSError("not there")
        return 10

    def fetch_ahead(self, name):
        with self.wake:
            self.fetched.append(name)
            self.wake.notify_all()

    def wait_for(self, count):
        with self.wake:
            assert self.wake.wait_for(lambda: len(self.fetched) >= count, timeout=30), self.fetched


class Dataset:
    def __init__(self):
        self.files = Files()

    def files_of(self, index):
        return [f"data-{index // 4}", f"video-{index}"]


class Batches:
    """One sample a batch, in order."""

    batch_size = 1

    def __len__(self):
        return 12

    def __iter__(self):
        return iter([[(0, index, 0)] for index in range(12)])


def expected(batches):
    return [name for index in batches for name in (f"data-{index // 4}", f"video-{index}")]


def test_the_window_bounds_what_is_fetched_ahead():
    data = Dataset()
    iterator = iter(LookAheadBatchSampler(Batches(), {0: data}, window=50, threads=1))
    assert next(iterator) == [(0, 0, 0)]
    data.files.wait_for(8)
    assert data.files.planned
    assert data.files.fetched == expected(range(4)), "data-0 and four videos are 50 bytes"
    assert next(iterator) == [(0, 1, 0)]
    data.files.wait_for(8)
    for number in range(2, 12):
        assert next(iterator) == [(0, number, 0)]
    assert next(iterator, None) is None
    assert [name for name in data.files.fetched if name.startswith("video")] == sorted(
        set(expected(range(12))) & set(data.files.fetched) - {f"data-{n}" for n in range(3)}, key=lambda n: int(n[6:])
    ), "in the order of their use"


def test_skipped_batches_are_not_fetched():
    data = Dataset()
    iterator = iter(LookAheadBatchSampler(Batches(), {0: data}, window=30, skipped=9, threads=1))
    for number in range(10):
        assert next(iterator) == [(0, number, 0)]
    data.files.wait_for(2)
    assert data.files.fetched[:2] == ["data-2", "video-9"]
    assert not set(data.files.fetched) & set(expected(range(8)))


def test_batches_in_flight_keep_their_files_in_the_window():
    data = Dataset()
    iterator = iter(LookAheadBatchSampler(Batches(), {0: data}, window=30, in_flight=2, threads=1))
    for _ in range(3):  # the workers hold two, the third is being read
        next(iterator)
    data.files.wait_for(5)
    time.sleep(0.05)
    assert data.files.fetched == [*expected(range(2)), "data-0"], "batch 0 is in use: video-2 has no room yet"


def test_order_position_and_state_are_the_samplers_own():
    plain, other = (
        MixtureBatchSampler([20], batch_size=3, multimodal_share=0.0, seed=1, with_pass=True) for _ in range(2)
    )
    ahead = LookAheadBatchSampler(other, {0: Dataset()}, window=1000)
    assert len(ahead) == len(plain)
    assert ahead.batch_size == 3
    first, second = iter(plain), iter(ahead)
    for _ in range(3):
        assert next(first) == next(second)
        assert ahead.state_dict() == plain.state_dict()
    ahead.set_epoch(1)
    plain.set_epoch(1)
    assert list(ahead) == list(plain)


def test_a_file_that_cannot_be_had_is_left_to_its_reader():
    data = Dataset()
    data.files_of = lambda index: ["broken", f"video-{index}"]
    list(LookAheadBatchSampler(Batches(), {0: data}, window=1000, threads=1))
    assert "broken" not in data.files.fetched


def test_threads_end_with_the_iteration():
    before = threading.active_count()
    iterator = iter(LookAheadBatchSampler(Batches(), {0: Dataset()}, window=20, threads=2))
    next(iterator)
    iterator.close()
    deadline = time.monotonic() + 30
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


pytestmark = pytest.mark.timeout(120)
