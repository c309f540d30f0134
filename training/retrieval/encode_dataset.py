"""Encode the images of the imitation dataset once, for the retrieval of similar samples (paper, appendix A).

    syvla-encode --policy_path outputs/my_task --robot_datasets path/to/dataset --encoder clip:openai/clip-vit-base-patch16 \
        --output outputs/my_task_vectors --workers 4

Processes encode parts of 1024 frames. A run that was killed goes on with the parts that are missing.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from syvla.command_line import CommandParser, error_text

from .demonstrations import STATISTICS_TOLERANCE
from .embedding_store import (
    VIEW_WEIGHTS,
    EmbeddingStore,
    Manifest,
    checked_weights,
    dataset_fingerprint,
    weighted_vectors,
)
from .image_encoders import ImageEncoder, load_encoder

logger = logging.getLogger("syvla.training.retrieval.encode_dataset")

SHARD_ROWS = 1024


def encode_datasets(
    datasets: Sequence[Any],
    encoder: str,
    folder: str | Path,
    *,
    views: Sequence[str] = tuple(VIEW_WEIGHTS),
    view_weights: Mapping[str, float] = VIEW_WEIGHTS,
    workers: int = 1,
    batch_size: int = 64,
    shard_rows: int = SHARD_ROWS,
    devices: Sequence[str] = ("cpu",),
    progress: bool = True,
) -> EmbeddingStore:
    """Encode every frame of `datasets` that is not encoded yet.

    Args:
        datasets: [`RobotDataset`]s.
        encoder: Spec, see `image_encoders`.
        folder: Where the vectors go.
        views: Views that count, in order.
        view_weights: Weight of each.
        workers: Processes; 1 encodes in this one.
        batch_size: Images per call of the encoder.
        shard_rows: Frames per part.
        devices: Devices that the processes take in turns.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If `folder` holds vectors of another dataset, encoder or weights.
    """
    from tqdm.auto import tqdm

    if workers < 1 or batch_size < 1 or shard_rows < 1:
        raise ValueError("workers, batch_size, shard_rows: expected at least 1 each")
    model = load_encoder(encoder, devices[0])
    store = EmbeddingStore.create(folder, *plan(datasets, model, views, view_weights, shard_rows))
    missing = store.missing_shards()
    if len(missing) < len(store.manifest.shards):
        logger.info("%s: %d of %d parts remain", folder, len(missing), len(store.manifest.shards))
    jobs = (
        _run_here(model, datasets, store, missing, batch_size)
        if workers == 1
        else _run_in_processes(encoder, datasets, store, missing, batch_size, min(workers, len(missing) or 1), devices)
    )
    with tqdm(total=len(missing), unit="part", desc="Encoding", disable=not progress) as bar:
        for number in jobs:
            store.mark_done(number)
            bar.update()
    return store


def plan(
    datasets: Sequence[Any],
    encoder: ImageEncoder,
    views: Sequence[str],
    view_weights: Mapping[str, float],
    shard_rows: int = SHARD_ROWS,
) -> tuple[Manifest, np.ndarray]:
    """Manifest of the vectors of datasets, and the instruction's number of each row."""
    tasks = list(dict.fromkeys(task for dataset in datasets for task in dataset.tasks))
    numbers = [
        np.array([tasks.index(task) for task in dataset.tasks])[dataset.task_indices]
        for dataset in datasets
        if len(dataset)
    ]
    if not numbers:
        raise ValueError("robot_datasets: hold no frames; there is nothing to encode")
    manifest = Manifest(
        dataset=dataset_fingerprint(datasets),
        encoder=encoder.fingerprint(),
        rows=sum(map(len, datasets)),
        views=list(views),
        view_weights=checked_weights(view_weights, views),
        dim=encoder.dim,
        tasks=tasks,
        shard_rows=shard_rows,
    )
    return manifest, np.concatenate(numbers)


def encode_views(
    encoder: ImageEncoder,
    samples: Sequence[Mapping[str, np.ndarray]],
    views: Sequence[str],
    factors: Sequence[float] | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted vectors (n, V * dim) and view mask (n, V) of samples {view: image}; views may be missing.

    Raises:
        ValueError: If a sample has none of the views.
    """
    mask = np.array([[view in sample for view in views] for sample in samples])
    if not mask.any(axis=1).all():
        row = int(np.argmin(mask.any(axis=1)))
        raise ValueError(
            f"sample {row}: has none of the views {list(views)}, got {sorted(samples[row])}; map its cameras"
        )
    features = np.zeros((len(samples), len(views), encoder.dim), np.float32)
    for column, view in enumerate(views):
        rows = np.flatnonzero(mask[:, column])
        if len(rows):
            features[rows, column] = encoder.encode([samples[int(row)][view] for row in rows])
    return weighted_vectors(features, mask, factors), mask


def _encode_shard(
    encoder: ImageEncoder, datasets: Sequence[Any], store: EmbeddingStore, number: int, batch_size: int
) -> int:
    low, high = store.manifest.shards[number]
    ends = np.cumsum([len(dataset) for dataset in datasets])
    vectors, masks = [], []
    for start in range(low, high, batch_size):
        samples = []
        for row in range(start, min(start + batch_size, high)):
            position = int(np.searchsorted(ends, row, side="right"))
            dataset = datasets[position]
            index = row - int(ends[position] - len(dataset))
            wanted = [view for view in store.manifest.views if view in dataset.cameras]
            samples.append({view: dataset.read_image(view, index) for view in wanted})
        vector, mask = encode_views(encoder, samples, store.manifest.views, np.sqrt(store.manifest.view_weights))
        vectors.append(vector)
        masks.append(mask)
    store.write_shard(number, np.concatenate(vectors), np.concatenate(masks))
    return number


def _run_here(
    encoder: ImageEncoder, datasets: Sequence[Any], store: EmbeddingStore, missing: Sequence[int], batch_size: int
) -> Iterator[int]:
    for number in missing:
        yield _encode_shard(encoder, datasets, store, number, batch_size)


_worker: tuple[ImageEncoder, Sequence[Any], EmbeddingStore, int]  # of a worker process, set when it starts


def _start_worker(
    encoder: str, datasets: Sequence[Any], folder: Path, batch_size: int, devices: Sequence[str], counter: Any
) -> None:
    global _worker
    import torch

    torch.set_num_threads(1)  # processes are the parallelism
    with counter.get_lock():
        turn = counter.value
        counter.value += 1
    model = load_encoder(encoder, devices[turn % len(devices)])
    _worker = (model, datasets, EmbeddingStore(folder), batch_size)


def _encode_in_worker(number: int) -> int:
    model, datasets, store, batch_size = _worker
    return _encode_shard(model, datasets, store, number, batch_size)


def _run_in_processes(
    encoder: str,
    datasets: Sequence[Any],
    store: EmbeddingStore,
    missing: Sequence[int],
    batch_size: int,
    workers: int,
    devices: Sequence[str],
) -> Iterator[int]:
    context = multiprocessing.get_context("spawn")  # a forked copy of a process that runs torch may hang
    start = (encoder, datasets, store.folder, batch_size, devices, context.Value("i", 0))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=start) as pool:
        futures = [pool.submit(_encode_in_worker, number) for number in missing]
        for future in as_completed(futures):
            yield future.result()


def build_parser() -> argparse.ArgumentParser:
    """The command line of `syvla-encode`."""
    parser = CommandParser(
        prog="syvla-encode",
        description="Encode the images of a dataset for the retrieval of similar samples.",
        example="syvla-encode --policy_path outputs/my_task --robot_datasets me/my_task "
        "--encoder policy:outputs/my_task --output outputs/vectors",
    )
    parser.add_argument("--policy_path", required=True, help="checkpoint of the policy: its robots and views")
    parser.add_argument("--robot_datasets", required=True, nargs="+", help="as in syvla-finetune")
    parser.add_argument(
        "--encoder", required=True, help="open_clip:NAME:WEIGHTS, clip:FOLDER_OR_ID or policy:FOLDER_OR_ID"
    )
    parser.add_argument(
        "--output", required=True, type=Path, help="folder of the vectors; an unfinished one is continued"
    )
    parser.add_argument("--view_weights", type=json.loads, default=VIEW_WEIGHTS, help="JSON, weight of each view")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--batch_size", type=int, default=64, help="images per call of the encoder")
    parser.add_argument("--shard_rows", type=int, default=SHARD_ROWS, help="frames that are finished together")
    parser.add_argument(
        "--devices", nargs="+", default=["cpu"], help="devices of the processes, in turns: cuda:0 cuda:1"
    )
    parser.add_argument("--statistics_tolerance", type=float, default=STATISTICS_TOLERANCE, help="as in syvla-ppo")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-encode`. Returns the exit status."""
    from transformers import AutoProcessor

    import syvla  # noqa: F401  registers the Auto classes
    from syvla.training.run.arguments import ROBOT_KEYS, dataset_spec

    from .demonstrations import open_expert_datasets

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    arguments = build_parser().parse_args(argv)
    try:
        specs = [dataset_spec(entry, "robot_datasets", ROBOT_KEYS) for entry in arguments.robot_datasets]
        processor = AutoProcessor.from_pretrained(arguments.policy_path)
        store = encode_datasets(
            open_expert_datasets(specs, processor, tolerance=arguments.statistics_tolerance),
            arguments.encoder,
            arguments.output,
            views=processor.views,
            view_weights=arguments.view_weights,
            workers=arguments.workers,
            batch_size=arguments.batch_size,
            shard_rows=arguments.shard_rows,
            devices=arguments.devices,
        )
    except (ValueError, OSError, ImportError) as error:
        print(error_text("error", error), file=sys.stderr)
        return 1
    print(f"{store.folder}: {store.manifest.rows} rows of {store.manifest.width} features")
    return 0


if __name__ == "__main__":
    sys.exit(main())
