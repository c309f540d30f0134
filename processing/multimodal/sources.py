"""Opens vision-language datasets with `datasets`: files, folders, Hub ids, streams; and the images that rows refer to."""

from __future__ import annotations

import errno
import io
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from syvla.processing.image_inputs import to_rgb
from syvla.processing.lfs_pointers import is_lfs_pointer, reading_problem, require_contents

FILE_KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
IMAGE_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp")


class BrokenRow(ValueError):
    """A row that cannot be used.

    Attributes:
        cause: One of `CAUSES`, for counting.
        row: Number of the row, or None if it is not known; a stream's rows are counted in this process.
    """

    def __init__(self, cause: str, detail: str, row: int = -1) -> None:
        super().__init__(detail)
        self.cause, self.row = cause, row


CAUSES = (
    "missing image",
    "unreadable image",
    "empty answer",
    "too many points",
    "malformed",
    "control tokens",
    "too long",
    "image count",
    "extreme shape",
)
"""Why rows are skipped. Checkpoints keep counts in this order: new ones go to the end."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "AVIF", "JPEG2000")
"""Formats that are read. Pillow knows more, some of which run other programs."""

MAX_PIXELS = 1280 * 28 * 28
"""Pixels that larger images are resized to. Ours: at most 1,280 tokens of Qwen2.5-VL, the budget that its authors suggest."""

MAX_ASPECT = 200
"""Longer side over the shorter one; Qwen2.5-VL's image processor takes no more."""


def open_rows(path: str | Path, split: str = "train", revision: str | None = None, field: str | None = None) -> Any:
    """Rows with random access.

    Args:
        path: A `.jsonl`, `.json` or `.parquet` file, a folder written by `datasets.save_to_disk` or one that holds parquet
            files, or a Hub id.
        split: Split to read where there are several.
        revision: Hub revision.
        field: Key of a JSON file under which its rows lie.

    Raises:
        ValueError: The file is empty or of another kind.
    """
    import datasets

    source = Path(path)
    if source.is_file():
        return datasets.load_dataset(_kind(source), data_files=str(source), split="train", **_field(field))
    if source.is_dir():
        files = sorted(map(str, source.rglob("*.parquet")))
        require_contents([*files, *source.rglob("*.arrow"), *source.glob("*.json")])
        if files and not (source / "state.json").is_file() and not (source / "dataset_dict.json").is_file():
            return datasets.load_dataset("parquet", data_files=files, split="train")
        loaded = datasets.load_from_disk(str(source))
        return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
    return datasets.load_dataset(str(path), split=split, revision=revision)


def open_stream(path: str | Path, split: str = "train", revision: str | None = None) -> Any:
    """Rows one after the other, without downloading the whole dataset: a `datasets.IterableDataset`."""
    import datasets

    source = Path(path)
    if source.is_file():
        return datasets.load_dataset(_kind(source), data_files=str(source), split="train", streaming=True)
    if source.is_dir():
        files = sorted(map(str, source.rglob("*.parquet")))
        require_contents(files)
        return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    return datasets.load_dataset(str(path), split=split, revision=revision, streaming=True)


def _kind(source: Path) -> str:
    kind = FILE_KINDS.get(source.suffix)
    if kind is None:
        raise ValueError(f"{source}: expected a .jsonl, .json or .parquet file, got '{source.suffix}'")
    if not source.stat().st_size:
        raise ValueError(f"{source}: the file is empty")
    require_contents([source])
    return kind


def _field(field: str | None) -> dict[str, str]:
    return {} if field is None else {"field": field}


class ImageFolder:
    """Images that rows name by a relative path, or without the ending.

    Args:
        folder: Root; nothing outside of it is opened.
        max_pixels: Larger images are resized to about this many pixels; None: none are.
    """

    def __init__(self, folder: str | Path, max_pixels: int | None = None) -> None:
        self.folder, self.max_pixels = Path(folder), max_pixels

    def find(self, names: Iterator[str] | list[str]) -> Path:
        """The first of `names` that is a file, with any usual ending where a name has none.

        Raises:
            BrokenRow: If there is none, or a name leads outside.
        """
        tried = []
        for name in names:
            for suffix in IMAGE_SUFFIXES:
                path = self.folder / f"{name}{suffix}"
                if not path.resolve().is_relative_to(self.folder.resolve()):
                    raise BrokenRow("malformed", f"images: {name!r} lies outside the dataset's folder")
                if path.is_file():
                    return path
            tried.append(name)
        raise BrokenRow("missing image", f"images: {' or '.join(tried)} is not in {self.folder}")

    def open(self, *names: str) -> Any:
        """The first of `names` that exists, as an RGB image."""
        return read_image(self.find(list(names)), self)


def read_image(image: Any, folder: ImageFolder) -> Any:
    """An RGB image as it is shown, out of what a row holds: a path, bytes as `datasets.Image` stores them, or an image.

    Raises:
        BrokenRow: It is missing or damaged, or too long and narrow.
    """
    if image is None:
        raise BrokenRow("missing image", "images: an entry is empty")
    if isinstance(image, str):
        return folder.open(image)
    if isinstance(image, Mapping):
        if image.get("bytes") is None:
            return read_image(image.get("path"), folder)
        image = io.BytesIO(image["bytes"])
    try:
        return _within_budget(to_rgb(_opened(image)), folder.max_pixels)
    except BrokenRow:
        raise
    except Exception as error:  # of a damaged file Pillow raises nearly anything
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # says nothing about the image
        if isinstance(image, Path) and is_lfs_pointer(image):
            raise BrokenRow("missing image", f"images: {image}: {reading_problem(image, '')}") from error
        raise BrokenRow("unreadable image", f"images: {error or type(error).__name__}") from error


def _opened(image: Any) -> Any:
    from PIL import Image

    if isinstance(image, Path | io.BytesIO):
        return Image.open(image, formats=FORMATS)
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected a path, bytes or an image, got {type(image).__name__}")
    return image


def _within_budget(image: Any, max_pixels: int | None) -> Any:
    from PIL import Image

    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        factor = math.sqrt(max_pixels / (width * height))
        size = max(1, int(width * factor)), max(1, int(height * factor))
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if any(max(size) > MAX_ASPECT * min(size) for size in ((width, height), image.size)):
        raise BrokenRow(
            "extreme shape", f"images: {width} x {height} pixels, one side more than {MAX_ASPECT} times the other"
        )
    return image


def without_decoding(rows: Any) -> Any:
    """The same rows with image columns left as bytes and paths, so that a damaged one does not fail with its whole row."""
    import datasets

    for name, feature in (rows.features or {}).items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
        elif isinstance(inner, datasets.Image):
            rows = rows.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return rows


@lru_cache(maxsize=8)
def json_rows(path: str, field: str) -> Any:
    """Rows of one key of a JSON file, opened once."""
    return open_rows(path, field=field)
