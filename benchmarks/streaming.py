"""Streaming over a throttled link against reading the same files locally: `python -m benchmarks.streaming`.

Records a dataset with three cameras as videos, serves it on the loopback over a link of few bytes per second, and runs the
training loader's mixture over it, with a pause per batch that stands for the step of a GPU. Compared are the share of time
waiting for batches with and without fetching ahead, the bytes that went over the link against the bytes of the files, and
the largest size of the cache, looked at all the time, against its bound. Absolute times depend on the machine, so ratios
within the run are what counts.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.reader import record
from benchmarks.reporting import print_table, write_result
from benchmarks.throttled_server import FolderServer
from syvla.processing import RobotDataset
from syvla.processing.file_order import FileOrder
from syvla.processing.mixture import MixtureBatchSampler, MixtureDataset
from syvla.processing.robot_data.streamed_dataset import StreamedRobotDataset
from syvla.processing.streaming.prefetch import WINDOW_SHARE, LookAheadBatchSampler

SHAPE = {"embodiment": "robot", "chunk_size": 10}


class DiskWatch:
    """The largest size of a folder's files that a thread sees, by their blocks on the disk."""

    def __init__(self, folder: Path):
        self.folder, self.largest, self._end = folder, 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._end.set()
        self._thread.join()
        return self.largest

    def _run(self) -> None:
        while not self._end.wait(0.005):
            sizes = {}  # by inode: a file may be renamed between two looks
            for name in ("partial", "files"):
                for path in (self.folder / name).glob("*"):
                    try:
                        status = path.stat()
                    except FileNotFoundError:
                        continue
                    sizes[status.st_ino] = status.st_size
            self.largest = max(self.largest, sum(sizes.values()))


def train(data: Any, options: argparse.Namespace, ahead: bool, shuffle_files: int | None = None) -> dict[str, float]:
    """Seconds of waiting for batches, and in all, over the first batches of an epoch."""
    sampler: Any = MixtureBatchSampler(
        [len(data)],
        batch_size=options.batch_size,
        multimodal_share=0.0,
        batches_per_epoch=options.batches,
        with_pass=True,
        orders={} if shuffle_files is None else {0: FileOrder(data.file_runs(), shuffle_files)},
    )
    if ahead:
        window = int(WINDOW_SHARE * data.files.cache.limit)
        sampler = LookAheadBatchSampler(sampler, {0: data}, window, in_flight=2 * options.workers)
    loader = torch.utils.data.DataLoader(
        MixtureDataset([data]),
        batch_sampler=sampler,
        collate_fn=len,
        num_workers=options.workers,
        prefetch_factor=2 if options.workers else None,
    )
    batches, waited = iter(loader), 0.0
    next(batches)  # starts the workers, and fills an empty cache
    start = time.perf_counter()
    for _ in range(options.batches - 1):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(options.step_seconds)
    total = time.perf_counter() - start
    return {"seconds": total, "waiting_share": waited / total}


def streamed(
    root: Path, folder: Path, cache_share: float, ahead: bool, shuffle_files: int | None, options: argparse.Namespace
) -> dict[str, Any]:
    stored = sum(
        path.stat().st_size for kind in ("data", "videos") for path in (root / kind).rglob("*") if path.is_file()
    )
    limit = int(cache_share * stored)
    speed = options.kilobytes_per_second * 1e3
    with FolderServer.running(root, bytes_per_second=speed, latency=options.latency) as server:
        data = StreamedRobotDataset(server.url, cache_dir=folder, cache_gb=limit / 1e9, **SHAPE)
        link = server.link
        opened = {"metadata_bytes": link.bytes_sent, "metadata_requests": len(link.requests)}
        watch = DiskWatch(folder)
        times = train(data, options, ahead, shuffle_files)
        largest = watch.stop()
        return {
            **times,
            **opened,
            "bytes_over_the_link": link.bytes_sent - opened["metadata_bytes"],
            "requests": len(link.requests) - opened["metadata_requests"],
            "bytes_of_all_files": stored,
            "cache_bound": data.files.cache.limit,
            "cache_largest": largest,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--length", type=int, default=20, help="frames per episode")
    parser.add_argument("--size", type=int, default=96, help="image size in pixels")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kilobytes_per_second", type=float, default=400.0)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer, as of object storage")
    parser.add_argument("--step_seconds", type=float, default=0.3, help="what a step of training stands for")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, result = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "recorded"
        record(root, options.size, True, options.episodes, options.length)
        local = train(RobotDataset(root, **SHAPE), options, ahead=False)
        rows.append(["local files", local["waiting_share"], "", "", ""])
        variants = [(share, ahead, None) for share in (0.5, 1.1) for ahead in (False, True)] + [(0.5, True, 4)]
        for share, ahead, window in variants:
            name = f"cache of {share:.0%} of the data, {'fetched ahead' if ahead else 'on demand'}"
            name += "" if window is None else f", shuffle_files {window}"
            found = streamed(root, Path(folder) / f"cache-{share}-{ahead}-{window}", share, ahead, window, options)
            full = found["cache_largest"] / found["cache_bound"]
            moved = found["bytes_over_the_link"] / found["bytes_of_all_files"]
            rows.append([name, found["waiting_share"], moved, full, found["requests"]])
            result.append({"variant": name, "cache_share": share, "ahead": ahead, "shuffle_files": window, **found})
    print_table(["", "time waiting", "bytes / bytes of files", "largest cache / bound", "requests"], rows)
    print(write_result("streaming", {"settings": vars(options), "local": local, "rows": result}))


if __name__ == "__main__":
    main()
