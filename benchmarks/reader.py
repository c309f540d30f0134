"""Samples per second of the dataset reader, with three views and one process: `python -m benchmarks.reader`.

Each recording is read in random order, as training does, and in sequence. Variants: PNG images in parquet held in memory,
the same through the memory-mapped cache that larger datasets use, decoded images kept in memory, and videos. "opening"
is the time to open the recording (with decoding, where images are kept decoded). The pictures are moving shapes on a
smooth background, which compress like camera images rather than like noise.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting import print_table, write_result
from syvla.processing import RobotDataset, RobotDatasetWriter

CAMERAS = ("head", "left_wrist", "right_wrist")
VARIANTS: dict[str, dict[str, Any]] = {
    "parquet": {},
    "parquet, memory-mapped": {"memory_limit": 0},
    "parquet, decoded": {"cache_images": True},
    "video": {},
}


def picture(size: int, time_step: float, camera: int) -> np.ndarray:
    """A smooth background with three moving discs, uint8 (size, size, 3)."""
    y, x = np.mgrid[0:size, 0:size] / size
    image = np.stack([90 + 80 * x, 100 + 60 * y, 120 + 50 * np.sin(3 * (x + y))], -1)
    for disc in range(3):
        phase = time_step / 20 + disc * 2 + camera
        inside = (x - 0.5 - 0.3 * np.cos(phase)) ** 2 + (y - 0.5 - 0.3 * np.sin(phase * 1.3)) ** 2 < 0.012
        image[inside] = np.eye(3)[disc] * 200 + 20
    return image.astype(np.uint8)


def record(root: Path, size: int, use_videos: bool, episodes: int, length: int) -> float:
    """Records a dataset; returns the seconds per frame that the writer took."""
    camera = {"dtype": "image", "shape": [size, size, 3], "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": [14], "names": None}
    features = {
        "observation.state": vector,
        "action": vector,
        **{f"observation.images.{name}": camera for name in CAMERAS},
    }
    pictures = [[picture(size, step, index) for index in range(len(CAMERAS))] for step in range(length)]
    generator = np.random.default_rng(0)
    seconds = 0.0
    with RobotDatasetWriter(root, fps=20, features=features, use_videos=use_videos) as writer:
        for _ in range(episodes):
            values = generator.normal(size=(length, 2, 14)).astype(np.float32)
            start = time.perf_counter()
            for step in range(length):
                frame = {"observation.state": values[step, 0], "action": values[step, 1]}
                for name, image in zip(CAMERAS, pictures[step], strict=True):
                    frame[f"observation.images.{name}"] = image
                writer.add_frame(frame, task="lift the cube", thought=f"phase {step // 30}")
            writer.save_episode()
            seconds += time.perf_counter() - start
    return seconds / (episodes * length)


def samples_per_second(dataset: RobotDataset, order: np.ndarray, limit: float) -> float:
    """Reads in the given order until the indices or the time limit (seconds) run out."""
    start, count = time.perf_counter(), 0
    for index in order:
        dataset[int(index)]
        count += 1
        if time.perf_counter() - start > limit:
            break
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224], help="image sizes in pixels")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--length", type=int, default=100, help="frames per episode")
    parser.add_argument("--seconds", type=float, default=2.0, help="time limit of each measurement")
    options = parser.parse_args()
    rows, result = [], []
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder) / "warm-up", 32, True, 1, 2)  # loads the libraries
        for size in options.sizes:
            writing: dict[bool, float] = {}
            for use_videos in (False, True):
                root = Path(folder) / f"{size}-{use_videos}"
                writing[use_videos] = record(root, size, use_videos, options.episodes, options.length)
            for name, arguments in VARIANTS.items():
                use_videos = name == "video"
                root = Path(folder) / f"{size}-{use_videos}"
                start = time.perf_counter()
                dataset = RobotDataset(root, embodiment="robot", cache_dir=Path(folder) / "cache", **arguments)
                dataset[0]
                opening = time.perf_counter() - start
                generator = np.random.default_rng(0)
                random_order = samples_per_second(dataset, generator.permutation(len(dataset)), options.seconds)
                in_sequence = samples_per_second(dataset, np.arange(len(dataset)), options.seconds)
                figures = [opening, random_order, in_sequence, 1 / writing[use_videos]]
                rows.append([size, name, *(round(value, 2) if value < 10 else round(value) for value in figures)])
                names = ("opening_seconds", "random_per_second", "sequential_per_second", "recorded_per_second")
                result.append({"size": size, "storage": name, **dict(zip(names, figures, strict=True))})
    print_table(["pixels", "storage", "opening s", "random /s", "in sequence /s", "recording /s"], rows)
    settings = {"episodes": options.episodes, "length": options.length, "views": len(CAMERAS)}
    print(write_result("reader", {"settings": settings, "rows": result}))


if __name__ == "__main__":
    main()
