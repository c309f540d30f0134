"""Makes `lerobot_v061_modalities` beside this file with LeRobot 0.6.1's own writers: a depth camera, a tactile grid and both
language columns. Run it in an environment that has LeRobot; the result is committed.
"""

import shutil
from pathlib import Path

import numpy as np
from lerobot.annotations.steerable_pipeline.executor import Executor
from lerobot.annotations.steerable_pipeline.reader import iter_episodes
from lerobot.annotations.steerable_pipeline.staging import EpisodeStaging
from lerobot.annotations.steerable_pipeline.writer import LanguageColumnsWriter
from lerobot.datasets.lerobot_dataset import LeRobotDataset

ROOT = Path(__file__).resolve().parent / "lerobot_v061_modalities"


def camera(channels: int) -> dict:
    return {"dtype": "video", "shape": (64, 96, channels), "names": ["height", "width", "channels"]}


FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "observation.images.front": camera(3),
    "observation.images.front_depth": {**camera(1), "info": {"is_depth_map": True}},
    "observation.tactile": {"dtype": "float32", "shape": (4, 4), "names": None},
}


def main() -> None:
    shutil.rmtree(ROOT, ignore_errors=True)
    dataset = LeRobotDataset.create("toy/toy", fps=10, features=FEATURES, root=ROOT, robot_type="toy")
    for episode in range(2):
        for step in range(5 + episode):
            frame = {
                "observation.state": np.array([episode, step], np.float32),
                "action": np.array([step / 10, -episode], np.float32),
                "observation.images.front": np.full((64, 96, 3), 20 * step + 10 * episode, np.uint8),
                "observation.images.front_depth": np.full((64, 96, 1), 500 + step, np.uint16),
                "observation.tactile": np.full((4, 4), step, np.float32),
                "task": f"task {episode}",
            }
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    annotate()


def annotate() -> None:
    staging = ROOT / ".staging"
    records = list(iter_episodes(ROOT))
    for record in records:
        times = record.frame_timestamps
        rows = [
            {
                "role": "assistant",
                "style": "subtask",
                "content": f"reach {record.episode_index}",
                "timestamp": times[0],
            },
            {"role": "assistant", "style": "plan", "content": "reach, then grasp", "timestamp": times[0]},
            {
                "role": "assistant",
                "style": "subtask",
                "content": f"grasp {record.episode_index}",
                "timestamp": times[3],
            },
        ]
        EpisodeStaging(staging, record.episode_index).write("plan", rows)
        event = {"role": "user", "style": "interjection", "content": "faster", "timestamp": times[2]}
        EpisodeStaging(staging, record.episode_index).write("interjections", [event])
    LanguageColumnsWriter().write_all(records, staging, ROOT)
    Executor._ensure_annotation_metadata_in_info(ROOT)
    shutil.rmtree(staging)


if __name__ == "__main__":
    main()
