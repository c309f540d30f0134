"""One budget of open videos per process, from its own limit; datasets beyond it work, and no good file is called damaged."""

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from dataset_recordings import record

from syvla.processing import RobotDataset
from syvla.processing.robot_data.open_videos import MOST_OPEN, OpenVideos
from syvla.processing.robot_data.video import VideoReader, VideoWriter

resource = pytest.importorskip("resource", reason="Windows has no such limit")

FPS, FRAMES, SIZE = 20, 20, (32, 48)


def level(file: int, frame: int) -> int:
    return 20 + 50 * file + 2 * frame


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    paths = [tmp_path_factory.mktemp("videos") / f"{file}.mp4" for file in range(3)]
    for file, path in enumerate(paths):
        writer = VideoWriter(path, FPS, *SIZE, "h264")
        for frame in range(FRAMES):
            writer.write(np.full((*SIZE, 3), level(file, frame), np.uint8))
        writer.close()
    return paths


def check(opened: OpenVideos, videos: list[Path], file: int, frame: int) -> None:
    image = opened.read(videos[file], SIZE, frame / FPS, 1e-4)
    assert abs(image.mean() - level(file, frame)) < 1.6


def count_opened(monkeypatch) -> list[str]:
    names: list[str] = []
    original = VideoReader.__init__
    monkeypatch.setattr(
        VideoReader,
        "__init__",
        lambda self, path, *rest: (names.append(Path(path).stem), original(self, path, *rest))[1],
    )
    return names


def test_the_video_unused_for_longest_is_closed_first(videos, monkeypatch):
    names = count_opened(monkeypatch)
    opened = OpenVideos(max_open=2)
    for file, frame in ((0, 3), (1, 4), (0, 5), (2, 6), (0, 7), (1, 8)):
        check(opened, videos, file, frame)
        assert len(opened) <= 2
    assert names == ["0", "1", "2", "1"]
    opened.close()
    assert len(opened) == 0


def test_a_file_that_takes_the_place_of_another_is_opened_anew(videos, tmp_path):
    path, opened = tmp_path / "video.mp4", OpenVideos()
    for file in (0, 1):
        path.write_bytes(videos[file].read_bytes())
        os.utime(path, ns=(file, file))
        assert abs(opened.read(path, SIZE, 0.1, 1e-4).mean() - level(file, 2)) < 1.6


@pytest.mark.filterwarnings("ignore:.*fork")
def test_processes_do_not_share_open_files(videos):
    opened = OpenVideos()
    check(opened, videos, 0, 2)
    assert len(pickle.loads(pickle.dumps(opened))) == 0
    child = os.fork()
    if child == 0:
        try:
            own = VideoReader.__init__
            made = []
            VideoReader.__init__ = lambda self, *rest: (made.append(rest), own(self, *rest))[1]
            check(opened, videos, 0, 12)
            os._exit(0 if len(made) == 1 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    check(opened, videos, 0, 3)


def test_threads_read_each_their_own_frame(videos):
    opened, wrong = OpenVideos(max_open=1), []

    def read(file: int) -> None:
        try:
            for frame in range(FRAMES):
                check(opened, videos, file, frame)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(file,)) for file in (0, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_budget_is_a_share_of_what_the_process_may_still_open(monkeypatch):
    held = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 32
    for limit, expected in (
        (held + 40, 20),
        (held + 1, 1),
        (1_000_000, MOST_OPEN),
        (resource.RLIM_INFINITY, MOST_OPEN),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        assert OpenVideos().max_open == pytest.approx(expected, abs=1)


LOW_LIMIT = """
import resource, sys
from pathlib import Path
import numpy as np
from syvla.processing import RobotDataset
from syvla.processing.robot_data.open_videos import OPEN_VIDEOS

root = sys.argv[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
members = [RobotDataset(Path(root) / str(number), embodiment="x", chunk_size=2) for number in range(24)]
for step in range(3):
    for number, dataset in enumerate(members):
        levels = [dataset[step]["images"][view].mean() for view in ("center", "left_wrist")]
        assert np.abs(np.array(levels) - (8 * step, 255 - 8 * step)).max() < 3, (number, step, levels)
print("read", len(OPEN_VIDEOS))
held = [open(root + "/0/meta/info.json") for _ in range(20)]  # the process comes to hold more than was left for it
try:
    while True:
        held.append(open(root + "/0/meta/info.json"))
except OSError:
    pass
print("full", members[0][4]["images"]["center"].shape)
OPEN_VIDEOS.close()
try:
    while True:
        held.append(open(root + "/0/meta/info.json"))
except OSError:
    pass
try:
    members[1][0]
except ValueError as error:
    print("refused", error)
"""


def test_many_data_sets_are_read_under_a_low_limit(tmp_path):
    """24 datasets with two cameras each are 48 videos; 64 files may be open."""
    first = record(tmp_path / "0", (5,), use_videos=True, video_codec="h264")
    for number in range(1, 24):
        (tmp_path / str(number)).mkdir()
        for path in first.rglob("*"):
            target = tmp_path / str(number) / path.relative_to(first)
            target.mkdir(parents=True, exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    run = subprocess.run(
        [sys.executable, "-c", LOW_LIMIT, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    read, full, refused = run.stdout.splitlines()
    assert 1 <= int(read.split()[1]) < 48
    assert full == "full (16, 16, 3)"
    assert "too many open files: this process may hold 64 (RLIMIT_NOFILE); raise the limit with `ulimit -n" in refused
    assert "damaged" not in refused


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux lists them")
def test_memory_mapped_pictures_hold_no_file_open(tmp_path):
    root = record(tmp_path / "set", (5, 7, 4))
    before = len(os.listdir("/proc/self/fd"))
    dataset = RobotDataset(root, embodiment="x", chunk_size=2, memory_limit=0, cache_dir=tmp_path / "cache")
    assert dataset[3]["images"]["center"].shape == (16, 16, 3)
    assert len(os.listdir("/proc/self/fd")) == before
