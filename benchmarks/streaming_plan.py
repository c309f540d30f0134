"""What streaming a dataset would take, counted from its metadata: `python -m benchmarks.streaming_plan`.

    python -m benchmarks.streaming_plan --dataset s3://bucket/set --cache_gb 500 --shuffle_files 32
    python -m benchmarks.streaming_plan --terabytes 10

Counts files, requests and the memory of the index, and runs the exact mixture over them: which files a batch needs, which of
them a cache of this bound still has, and how many bytes go over the link per sample. Nothing is downloaded but `meta/`. The
metadata says in which file an episode lies, not how large the file is: sizes are `data_files_size_in_mb` and
`video_files_size_in_mb` of `info.json`, at which LeRobot begins a new file. `--terabytes` makes up a dataset of this size.
"""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting import print_table, write_result
from syvla.processing.file_order import FileOrder
from syvla.processing.mixture import MixtureBatchSampler
from syvla.processing.robot_data.lerobot_format import DATA_PATH, VIDEO_PATH, DatasetInfo
from syvla.processing.robot_data.metadata import DatasetMetadata
from syvla.processing.robot_data.robot_dataset import file_runs
from syvla.processing.robot_data.streamed_dataset import open_metadata
from syvla.processing.streaming.remote_folder import PART_BYTES

MEGABYTE = 10**6


@dataclass
class Plan:
    """A dataset as the mixture sees it.

    Attributes:
        files: int64 (episodes, 1 + cameras), number of each episode's data file and video files.
        sizes: int64 (files,), bytes.
        metadata: Of the dataset.
    """

    files: np.ndarray
    sizes: np.ndarray
    metadata: DatasetMetadata

    @classmethod
    def of(cls, metadata: DatasetMetadata) -> Plan:
        """Numbers the files that hold the episodes, and takes their sizes from `info.json`."""
        kinds = ["data", *(f"videos/{key}" for key in _cameras(metadata))]
        columns, sizes = [], []
        for kind in kinds:
            name = "data_files_size_in_mb" if kind == "data" else "video_files_size_in_mb"
            place = (
                metadata.columns[f"{kind}/chunk_index"] * metadata.info.chunks_size
                + metadata.columns[f"{kind}/file_index"]
            )
            distinct, numbers = np.unique(place, return_inverse=True)
            columns.append(numbers + len(sizes))
            sizes += [int(metadata.info.raw.get(name) or (100 if kind == "data" else 200)) * MEGABYTE] * len(distinct)
        return cls(np.stack(columns, 1), np.array(sizes, np.int64), metadata)

    def index_bytes(self) -> int:
        """Memory of the index: the arrays of the metadata and the first frame of every episode."""
        arrays = [self.metadata.lengths, *self.metadata.columns.values()]
        return sum(array.nbytes for array in arrays) + 8 * len(self.metadata.lengths)

    def requests_of(self, files: int) -> int:
        """One for the version of a file, and one for each part of it."""
        return int(1 + math.ceil(self.sizes[files] / PART_BYTES))

    def run(
        self, batch_size: int, batches: int, cache_bytes: int, shuffle_files: int | None, seed: int = 0
    ) -> dict[str, float]:
        """The mixture's first batches through a cache that removes what was used longest ago."""
        starts = np.concatenate([[0], np.cumsum(self.metadata.lengths)])
        orders = (
            {}
            if shuffle_files is None
            else {0: FileOrder(file_runs(self.metadata, _cameras(self.metadata)), shuffle_files)}
        )
        sampler = MixtureBatchSampler(
            [int(starts[-1])],
            batch_size=batch_size,
            multimodal_share=0.0,
            seed=seed,
            batches_per_epoch=batches,
            orders=orders,
        )
        cache: OrderedDict[int, int] = OrderedDict()
        held = fetched = requests = files = 0
        for batch in sampler:
            episodes = np.searchsorted(starts, [index for _, index in batch], side="right") - 1
            for number in dict.fromkeys(self.files[episodes].reshape(-1).tolist()):
                if number not in cache:
                    fetched, files = fetched + int(self.sizes[number]), files + 1
                    requests += self.requests_of(number)
                    held += int(self.sizes[number])
                    cache[number] = int(self.sizes[number])
                cache.move_to_end(number)
                while held > cache_bytes and len(cache) > 1:
                    held -= cache.popitem(last=False)[1]
        samples = batch_size * batches
        return {"samples": samples, "megabytes_per_sample": fetched / MEGABYTE / samples, "files_per_sample": files / samples,
                "requests_per_sample": requests / samples}  # fmt: skip


def _cameras(metadata: DatasetMetadata) -> list[str]:
    return [key for key in metadata.info.camera_keys if metadata.info.features[key]["dtype"] == "video"]


def made_up(
    terabytes: float, cameras: int = 3, seconds: int = 20, fps: int = 30, camera_mb: float = 4.0
) -> DatasetMetadata:
    """Metadata of a dataset of this size: episodes of 20 s, 4 MB of video per camera, 0.1 MB of states and actions."""
    keys = [f"observation.images.camera_{number}" for number in range(cameras)]
    episodes = int(terabytes * 1e6 / (cameras * camera_mb + 0.1))
    number = np.arange(episodes)
    columns = {"data/chunk_index": number // 1000 // 1000, "data/file_index": number // 1000 % 1000}
    per_file = int(200 / camera_mb)
    for key in keys:
        file = number // per_file
        columns |= {f"videos/{key}/chunk_index": file // 1000, f"videos/{key}/file_index": file % 1000}
        columns[f"videos/{key}/from_timestamp"] = (number % per_file) * float(seconds)
    features = {key: {"dtype": "video", "shape": [480, 640, 3], "names": None} for key in keys}
    raw = {"data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
    frames = episodes * seconds * fps
    info = DatasetInfo("v3.0", fps, features, episodes, frames, 1000, DATA_PATH, VIDEO_PATH, None, raw)
    return DatasetMetadata(Path("made-up"), info, ["task"], np.full(episodes, seconds * fps), columns)


def describe(plan: Plan) -> dict[str, float]:
    """Counts of the whole dataset."""
    everything = sum(plan.requests_of(number) for number in range(len(plan.sizes)))
    return {
        "terabytes": float(plan.sizes.sum()) / 1e12,
        "episodes": len(plan.metadata.lengths),
        "frames": int(plan.metadata.lengths.sum()),
        "files": len(plan.sizes),
        "requests_for_every_file_once": everything,
        "index_megabytes": plan.index_bytes() / MEGABYTE,
        "megabytes_per_sample_if_fetched_once": float(plan.sizes.sum()) / MEGABYTE / int(plan.metadata.lengths.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="folder, Hub dataset or URL; of LeRobot v3")
    parser.add_argument(
        "--terabytes", type=float, default=10.0, help="size of a dataset that is made up, without --dataset"
    )
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--cache_gb", type=float, default=1000.0)
    parser.add_argument("--shuffle_files", type=int, nargs="+", default=[64, 256])
    options = parser.parse_args()
    if options.dataset is None:
        metadata = made_up(options.terabytes)
    else:
        metadata = open_metadata(options.dataset, streaming=not Path(options.dataset).is_dir())
        if not metadata.info.is_v3:
            parser.error(f"--dataset: {options.dataset} is {metadata.info.codebase_version}; the plan reads v3")
    plan = Plan.of(metadata)
    whole = describe(plan)
    print_table(list(whole), [list(whole.values())])
    rows: list[dict[str, Any]] = []
    for window in (None, *options.shuffle_files):
        found = plan.run(options.batch_size, options.batches, int(options.cache_gb * 1e9), window)
        rows.append({"shuffle_files": window, **found})
    print_table(list(rows[0]), [["all" if v is None else v for v in row.values()] for row in rows])
    print(write_result("streaming_plan", {"settings": vars(options), "whole": whole, "rows": rows}))


if __name__ == "__main__":
    main()
