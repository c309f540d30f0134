"""Camera frames per second of the training loader: `python -m benchmarks.data_loading`.

Records a dataset with three cameras as videos, and compares, with the same number of processes:
- a plain sequential decode of the same videos from first to last frame, the least work that yields every frame once;
- reading the same frames as JPEG files extracted beforehand, in random order;
- the dataset in sequence and in random order, without collation;
- the training loader: the mixture sampler's random order, decoding and collation in workers, sequences padded to buckets.
Counts frames, not samples: a sample has one frame per camera. Every image is decoded once and used for both the VLM and the
expert's low-resolution views.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image

from benchmarks.reader import CAMERAS, record
from benchmarks.reporting import print_table, write_result
from syvla.modeling_syvla import SyVLAConfig
from syvla.processing import RobotDataset, build_tiny_processor
from syvla.processing.mixture import MixtureBatchSampler, MixtureDataset
from syvla.training.run.batches import TrainingCollator


def rate(frames: Iterator[int], limit: float) -> float:
    """Frames per second of an iterator of numbers of frames, until it ends or the time limit (seconds) is over."""
    next(frames)  # opens files, starts processes
    start, count = time.perf_counter(), 0
    for number in frames:
        count += number
        if time.perf_counter() - start > limit:
            break
    return count / (time.perf_counter() - start)


def sequential_decode(videos: list[Path]) -> Iterator[int]:
    """Every frame of every video in order, converted to RGB, on one thread and with one conversion context."""
    reformatter = VideoReformatter()
    for path in videos:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for frame in container.decode(video=0):
                reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                yield 1


def extracted_images(data: RobotDataset, order: np.ndarray) -> Iterator[int]:
    """JPEG files held in memory, as a warm file cache holds them."""
    stored = []
    for index in range(min(len(data), 300)):
        for view in data.cameras:
            file = io.BytesIO()
            Image.fromarray(data.read_image(view, index)).save(file, "JPEG", quality=95)
            stored.append(file.getvalue())
    for index in order:
        for view in range(len(data.cameras)):
            np.asarray(
                Image.open(io.BytesIO(stored[(int(index) * len(data.cameras) + view) % len(stored)])).convert("RGB")
            )
        yield len(data.cameras)


def reader(data: RobotDataset, order: np.ndarray) -> Iterator[int]:
    for index in order:
        data[int(index)]
        yield len(data.cameras)


def loader(data: RobotDataset, workers: int, batch_size: int) -> Iterator[int]:
    """Batches as the trainer gets them."""
    processor = build_tiny_processor(SyVLAConfig.tiny())
    processor.set_embodiment(data.embodiment, data.statistics())
    sampler = MixtureBatchSampler([len(data)], batch_size=batch_size, multimodal_share=0.0, batches_per_epoch=10_000)
    batches: Any = torch.utils.data.DataLoader(
        MixtureDataset([data]),
        batch_sampler=sampler,
        collate_fn=TrainingCollator(processor.collate, 64),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
    )
    for batch in batches:
        yield len(batch["input_ids"]) * len(data.cameras)


def measure(size: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    root = folder / f"videos-{size}"
    record(root, size, True, options.episodes, options.length)
    data = RobotDataset(root, embodiment="robot", chunk_size=SyVLAConfig.tiny().chunk_size)
    videos = sorted(root.rglob("*.mp4"))
    order = np.random.default_rng(0).permutation(len(data))
    limit = options.seconds
    variants = {
        "plain sequential decode": lambda: sequential_decode(videos),
        "extracted JPEG files, random": lambda: extracted_images(data, np.tile(order, 20)),
        "dataset, in sequence": lambda: reader(data, np.arange(len(data))),
        "dataset, random": lambda: reader(data, np.tile(order, 20)),
        "training loader, 0 workers": lambda: loader(data, 0, options.batch_size),
        **{f"training loader, {n} workers": (lambda n=n: loader(data, n, options.batch_size)) for n in options.workers},
    }
    return {name: rate(make(), limit) for name, make in variants.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224], help="image sizes in pixels")
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--length", type=int, default=100, help="frames per episode")
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4.0, help="time limit of each measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, result = [], []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            rates = measure(size, options, Path(folder))
            plain = rates["plain sequential decode"]
            images = rates["extracted JPEG files, random"]
            for name, value in rates.items():
                rows.append([size, name, round(value), value / plain, value / images])
                result.append({"size": size, "variant": name, "frames_per_second": value})
    print_table(["pixels", "", "frames /s", "to sequential decode", "to extracted images"], rows)
    settings = {"cameras": len(CAMERAS), "episodes": options.episodes, "length": options.length}
    print(write_result("data_loading", {"settings": {**settings, "batch_size": options.batch_size}, "rows": result}))


if __name__ == "__main__":
    main()
