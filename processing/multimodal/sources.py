"""Opens vision-language data sets with `datasets`: files, folders, Hub ids, streams; and the images that rows refer to."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE_KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
IMAGE_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp")


class BrokenRow(ValueError):
    """A row that cannot be used.

    Attributes:
        cause: One of `CAUSES`, for counting.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


CAUSES = ("missing image", "unreadable image", "empty answer", "too many points", "malformed")
"""Why rows are skipped."""


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
        if files and not (source / "state.json").is_file() and not (source / "dataset_dict.json").is_file():
            return datasets.load_dataset("parquet", data_files=files, split="train")
        loaded = datasets.load_from_disk(str(source))
        return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
    return datasets.load_dataset(str(path), split=split, revision=revision)


def open_stream(path: str | Path, split: str = "train", revision: str | None = None) -> Any:
    """Rows one after the other, without downloading the whole data set: a `datasets.IterableDataset`."""
    import datasets

    source = Path(path)
    if source.is_file():
        return datasets.load_dataset(_kind(source), data_files=str(source), split="train", streaming=True)
    if source.is_dir():
        files = sorted(map(str, source.rglob("*.parquet")))
        return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    return datasets.load_dataset(str(path), split=split, revision=revision, streaming=True)


def _kind(source: Path) -> str:
    kind = FILE_KINDS.get(source.suffix)
    if kind is None:
        raise ValueError(f"{source}: expected a .jsonl, .json or .parquet file, got '{source.suffix}'")
    if not source.stat().st_size:
        raise ValueError(f"{source}: the file is empty")
    return kind


def _field(field: str | None) -> dict[str, str]:
    return {} if field is None else {"field": field}


class ImageFolder:
    """Images that rows name by a relative path, or without the ending.

    Args:
        folder: Root; nothing outside of it is opened.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

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
    """An RGB image out of what a row holds: a path, bytes as `datasets.Image` stores them, or a decoded image.

    Raises:
        BrokenRow: It is missing or damaged.
    """
    from PIL import Image

    try:
        if image is None:
            raise BrokenRow("missing image", "images: an entry is empty")
        if isinstance(image, str):
            return folder.open(image)
        if isinstance(image, Path):
            return Image.open(image).convert("RGB")
        if isinstance(image, Mapping):
            if image.get("bytes") is None:
                return read_image(image.get("path"), folder)
            return Image.open(io.BytesIO(image["bytes"])).convert("RGB")
        return image.convert("RGB")
    except (OSError, SyntaxError, AttributeError, Image.DecompressionBombError) as error:
        raise BrokenRow("unreadable image", f"images: {error}") from error


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
