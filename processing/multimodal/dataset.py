"""Vision-language data in one chat format: `{"messages": [...], "images": [...]}`, loss on the assistant's answers.

Rows that cannot be used are skipped: the next usable row takes their place. They are counted by cause, in all worker
processes together, and reported.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .adapters import ADAPTERS, COLUMNS, AdapterContext, MissingSizeError, ResizedSize
from .skipped_rows import SkippedRows
from .sources import MAX_PIXELS, BrokenRow, ImageFolder, json_rows, open_rows, open_stream, without_decoding

logger = logging.getLogger(__name__)

MAX_SKIPPED = 1000
"""Rows skipped in a row after which the dataset counts as unusable."""

SMALLEST_BUDGET = 28 * 28
"""Pixels of one token of Qwen2.5-VL."""


class MultimodalDataset(Dataset[dict[str, Any]]):
    """A vision-language dataset.

    Args:
        path: A `.jsonl`, `.json` or `.parquet` file, a folder written by `datasets.save_to_disk` or of parquet files, or a
            Hub id.
        split: Split to read where there are several.
        revision: Hub revision.
        format: Schema of the rows, a key of `ADAPTERS`: "messages" (columns `messages` and `images`: a user turn's content
            is a string, or a list of `{"type": "text", "text": ...}` and `{"type": "image"}` parts; `images` holds one
            entry per image part), or one of the paper's five: "coco_captions", "vqa_v2", "pixmo_points",
            "pixmo_point_explanations", "cambrian".
        images: Folder of the images that rows name; None: the folder of the file. Official COCO and VQA-v2 names,
            relative paths, and files named by the SHA-256 of `image_sha256` are found.
        annotations: JSON file with the answers, for the official question files of VQA-v2.
        resized_size: Size that the VLM resizes an image to, for points; see `resized_size`.
        streaming: Read the rows of a Hub dataset as they come instead of downloading them first. They then come in the
            order of the stream whatever the index; a resumed run begins it anew in another order, see `begin_at`.
        rows: Number of rows of a stream, which cannot be asked.
        shuffle_buffer: Rows of a stream among which the next is drawn.
        max_pixels: Larger images are resized to about this many pixels; None: none are.
        check: Raises `BrokenRow` for a chat that the processor does not take, see `RowCheck`.
        max_skipped_share: Share of unusable rows among those read above which reading ends with an error.
        skip_log: JSON lines file that unusable rows are named in, see `SkippedRows`.

    Attributes:
        name: The path or Hub id.
        folder: Folder of the dataset, where its card lies.
        skipped: Rows skipped so far, see `SkippedRows`.

    Raises:
        ValueError: If an argument does not fit, or columns are missing.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        revision: str | None = None,
        *,
        format: str = "messages",
        images: str | Path | None = None,
        annotations: str | Path | None = None,
        resized_size: ResizedSize | None = None,
        streaming: bool = False,
        rows: int | None = None,
        shuffle_buffer: int = 1000,
        max_pixels: int | None = MAX_PIXELS,
        check: Callable[[Mapping[str, Any]], None] | None = None,
        max_skipped_share: float = 1.0,
        skip_log: str | Path | None = None,
    ) -> None:
        if max_pixels is not None and max_pixels < SMALLEST_BUDGET:
            raise ValueError(f"max_pixels: expected at least {SMALLEST_BUDGET} pixels per image, got {max_pixels}")
        if format not in ADAPTERS:
            raise ValueError(f"format: expected one of {sorted(ADAPTERS)}, got {format!r}")
        source = Path(path)
        self.name, self.format = str(path), format
        self.folder = source.parent if source.is_file() else source
        folder = self.folder if images is None else Path(images)
        if images is not None and not folder.is_dir():
            raise ValueError(f"images: {images} is no folder; give the one that holds the images of {path}")
        self._adapter = ADAPTERS[format]
        self._context = AdapterContext(ImageFolder(folder, max_pixels), resized_size, _side(path, format, annotations))
        self._check = check
        self.skipped = SkippedRows(self.name, max_skipped_share, skip_log)
        self._numbers: np.ndarray | None = None  # rows that the dataset consists of; None: all
        self._stream: _Stream | None = None
        if streaming:
            if rows is None or rows < 1:
                raise ValueError(f"rows: a stream has no length of its own; give its number of rows, got {rows}")
            self._stream = _Stream(partial(open_stream, path, split, revision), shuffle_buffer)
            self._length = rows
            return
        field = {"coco_captions": "annotations", "vqa_v2": "questions"}.get(format)
        official = source.suffix == ".json" and field is not None
        self.rows = without_decoding(open_rows(path, split, revision, field if official else None))
        self._length = len(self.rows)
        missing = set(COLUMNS[format]) - set(self.rows.column_names)
        if missing:
            raise ValueError(f"{path}: lacks the columns {sorted(missing)}; it has {self.rows.column_names}")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row's chat, or that of the next usable row, whose number is `row`.

        Raises:
            ValueError: If `MAX_SKIPPED` rows in a row, or all of them, are unusable, or more than `max_skipped_share`.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: row {index} of {len(self)}")
        tries = min(MAX_SKIPPED, len(self))
        for offset in range(tries):
            try:
                item = self.read_row((index + offset) % len(self))
            except BrokenRow as error:
                self.skipped.add(error)
                continue
            self.skipped.add_usable()
            return {**item, "row": self._number((index + offset) % len(self))}
        raise ValueError(f"{self.name}: {tries} rows in a row are unusable: {self.report()}")

    @property
    def is_stream(self) -> bool:
        """Whether rows come in the order of a stream, whatever the index."""
        return self._stream is not None

    def select(self, numbers: np.ndarray) -> MultimodalDataset:
        """The dataset of the rows with these numbers alone, int64 (n,), which counts its own skipped rows.

        Raises:
            ValueError: If the rows are a stream.
        """
        if self._stream is not None:
            raise ValueError(f"{self.name}: rows of a stream cannot be chosen by number; read it without streaming")
        chosen = copy.copy(self)
        chosen._numbers = np.asarray(numbers, dtype=np.int64) if self._numbers is None else self._numbers[numbers]
        chosen._length = len(chosen._numbers)
        chosen.skipped = SkippedRows(self.name, self.skipped.largest_share, self.skipped.log)
        return chosen

    def _number(self, index: int) -> int:
        return index if self._numbers is None else int(self._numbers[index])

    def begin_at(self, step: int) -> None:
        """For a run that goes on at `step`: a stream is shuffled anew, by this number, so that its first rows are not those
        that the run began with. Finding the row where it stopped would mean to download all before it again.
        """
        if self._stream is not None:
            self._stream.begin_at(step)

    def read_row(self, index: int) -> dict[str, Any]:
        """The chat of one row.

        Raises:
            BrokenRow: A ValueError that names the row, if it cannot be used.
        """
        if self._stream is not None:
            row, index = self._stream.next()
        else:
            index = self._number(index)
            row = self.rows[index]
        try:
            item = self._adapter(row, self._context)
            if self._check is not None:
                self._check(item)
            return item
        except BrokenRow as error:
            raise BrokenRow(error.cause, f"{self.name}, row {index}: cannot be read ({error})", index) from error
        except MissingSizeError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BrokenRow("malformed", f"{self.name}, row {index}: cannot be read ({error!r})", index) from error

    def report(self) -> dict[str, int]:
        """Rows skipped so far, by cause."""
        return self.skipped.report()


class _Stream:
    """An endless stream of rows; every worker process opens its own, with a part of the shards where it can."""

    def __init__(self, open_source: Callable[[], Any], shuffle_buffer: int) -> None:
        self._open, self._shuffle_buffer = open_source, shuffle_buffer
        self._iterator: Iterator[Mapping[str, Any]] | None = None
        self._epoch, self._position = 0, 0
        self._begun_at = 0

    def begin_at(self, step: int) -> None:
        self._iterator, self._epoch, self._position, self._begun_at = None, 0, 0, step

    def next(self) -> tuple[Mapping[str, Any], int]:
        """The next row and its number in this process."""
        for _ in range(2):
            if self._iterator is None:
                self._iterator = _rows_of(self._source())
            row = next(self._iterator, None)
            if row is not None:
                self._position += 1
                return row, self._position - 1
            self._iterator, self._epoch = None, self._epoch + 1
        raise ValueError("the stream holds no rows")

    def _source(self) -> Any:
        import torch.distributed

        rows = without_decoding(self._open())
        worker = torch.utils.data.get_worker_info()
        ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if ranks else (0, 1)
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        part, parts = rank * count + number, world * count
        if parts > 1:
            rows = rows.shard(parts, part) if rows.num_shards >= parts else _every(rows, parts, part)
        if self._shuffle_buffer > 1:
            seed = self._epoch + (self._begun_at << 16)
            rows = rows.shuffle(seed=seed, buffer_size=self._shuffle_buffer)
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_iterator": None}


def _rows_of(stream: Any) -> Iterator[Mapping[str, Any]]:
    """Rows of a stream. `iter(stream)` would leave workers beyond the number of shards without any."""
    for batch in stream.iter(batch_size=32):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _every(rows: Any, parts: int, part: int) -> Any:
    return rows.filter(lambda _, number: number % parts == part, with_indices=True)


def _side(path: str | Path, format: str, annotations: str | Path | None) -> Callable[[Mapping[str, Any]], Any] | None:
    """Finds the annotation of a VQA-v2 question: the same row of the official file, else the one of the same id."""
    if annotations is None:
        if format == "vqa_v2" and Path(path).suffix == ".json":
            raise ValueError(
                f"annotations: {path} holds VQA-v2 questions without answers; give v2_mscoco_..._annotations.json"
            )
        return None
    if not Path(annotations).is_file():
        raise ValueError(f"annotations: {annotations} is no file")
    return _Annotations(str(annotations))


class _Annotations:
    """Rows of an annotation file by question id; picklable, so that workers open their own."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._rows: dict[int, int] | None = None

    def __call__(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        rows = json_rows(self.path, "annotations")
        if self._rows is None:
            self._rows = {int(number): row for row, number in enumerate(rows["question_id"])}
        position = self._rows.get(int(question["question_id"]))
        if position is None:
            raise BrokenRow("empty answer", f"annotations: none for question {question['question_id']}")
        annotation: Mapping[str, Any] = rows[position]
        return annotation

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_rows": None}


def resized_size(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """(height, width) that a Qwen2-VL image processor resizes an image to.

    Raises:
        ValueError: If the image processor is of another family.
    """
    rule = getattr(sys.modules[type(image_processor).__module__], "smart_resize", None)
    if rule is None:
        raise ValueError(
            f"resized_size: {type(image_processor).__name__} has no resizing rule of Qwen2-VL, which points need"
        )
    size = image_processor.size
    limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    found = rule(height, width, image_processor.patch_size * image_processor.merge_size, **limits)
    return int(found[0]), int(found[1])
