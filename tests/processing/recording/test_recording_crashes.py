"""Recording survives SIGKILL at every moment: whole episodes remain, and recording goes on after them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_recordings import check_content, features, record_episode

from syvla.processing import RobotDatasetWriter
from syvla.processing.robot_data.lerobot_format import read_info

HERE = Path(__file__).parents[1]

CRASH_SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from dataset_recordings import features, record_episode
from syvla.processing import RobotDatasetWriter

base, use_videos = Path(sys.argv[1]), sys.argv[2] == "video"
moment = 0
while True:  # one child per moment at which a file is put in place: killed just before or just after it
    root = base / f"{{moment:03d}}"
    if (child := os.fork()) == 0:
        replace, count = os.replace, 0

        def killing_replace(source, target):
            global count
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        writer = RobotDatasetWriter(root, fps=10, features=features(), use_videos=use_videos)
        record_episode(writer, 0, 3, thoughts=True)
        (base / f"{{moment:03d}}.first").touch()
        os.replace = killing_replace
        record_episode(writer, 1, 4, thoughts=True)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        break  # beyond the last file of an episode
    moment += 1
print(moment)
"""


@pytest.mark.parametrize("kind", ["images", "video"])
def test_kill_at_every_moment_of_saving_leaves_whole_episodes(tmp_path, kind):
    script = CRASH_SCRIPT.format(here=str(HERE))
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path), kind], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    moments = int(result.stdout)
    assert moments >= 8  # data, episodes, statistics, info; before and after each
    saved = set()
    for moment in range(moments):
        root = tmp_path / f"{moment:03d}"
        episodes = read_info(root).total_episodes
        saved.add(episodes)
        dataset = check_content(root, episodes)
        assert dataset.thoughts[0] == "step 0 of episode 0"
        with RobotDatasetWriter(root, fps=10, features=features(), use_videos=kind == "video") as writer:
            record_episode(writer, episodes, 5, thoughts=True)
        check_content(root, episodes + 1)
        check_files(root)
    assert saved == {1, 2}


def check_files(root: Path) -> None:
    """What LeRobot, which reads every parquet file it finds, sees: each row once, nothing unfinished."""
    info = read_info(root)
    data = np.concatenate([pq.read_table(p)["index"].to_numpy() for p in sorted(root.glob("data/*/*.parquet"))])
    np.testing.assert_array_equal(data, np.arange(info.total_frames))
    rows = [row for p in sorted(root.glob("meta/episodes/*/*.parquet")) for row in pq.read_table(p).to_pylist()]
    assert [row["episode_index"] for row in rows] == list(range(info.total_episodes))
    videos = len(list(root.glob("videos/*/*/*.mp4")))
    assert videos == (2 * info.total_episodes if info.video_path else 0)
    assert json.loads((root / "meta/stats.json").read_text())["action"]["count"] == [info.total_frames]
    assert not list(root.rglob("*.tmp"))
    assert not (root / ".recording").exists()


ENDLESS_SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from dataset_recordings import features, record_episode
from syvla.processing import RobotDatasetWriter

with RobotDatasetWriter(sys.argv[1], fps=10, features=features(), use_videos=True) as writer:
    print("ready", flush=True)
    while True:
        record_episode(writer, writer.num_episodes, 6)
        print(writer.num_episodes, flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_at_any_time_loses_nothing_it_had_saved(tmp_path):
    generator = np.random.default_rng(0)
    root = tmp_path / "set"
    for _ in range(3):
        command = [sys.executable, "-c", ENDLESS_SCRIPT.format(here=str(HERE)), str(root)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdout.readline()  # one is saved, whatever the machine is busy with
        time.sleep(float(generator.uniform(0, 0.5)))
        os.kill(process.pid, signal.SIGKILL)
        acknowledged = [int(line) for line in process.stdout.read().split()]
        process.wait()
        saved = read_info(root).total_episodes
        assert saved >= max(acknowledged, default=0)
        check_content(root, saved)
    record_last = RobotDatasetWriter(root, fps=10, features=features(), use_videos=True)
    record_episode(record_last, saved, 6)
    record_last.finalize()
    check_content(root, saved + 1)
    check_files(root)
