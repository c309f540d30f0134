"""Rows of a benchmark with their images; a damaged image is a fact about its row, not the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .benchmarks import Benchmark
from .local_datasets import how_to_get, parquet_files
from .prompts import DamagedRow


def read_rows(benchmark: Benchmark, data_root: str | Path | None) -> Any:
    """The rows of a benchmark's split as a `datasets.Dataset`.

    Raises:
        FileNotFoundError: If the data are not there; says what to put where.
        ValueError: If a file is damaged or lacks columns.
    """
    import datasets

    if data_root is not None:
        files = [str(path) for path in parquet_files(benchmark, data_root)]
        return datasets.load_dataset("parquet", data_files={benchmark.split: files}, split=benchmark.split)
    try:
        return datasets.load_dataset(benchmark.dataset, benchmark.config, split=benchmark.split)
    except (OSError, ValueError) as error:  # ConnectionError is an OSError; what the cache lacks is a ValueError
        raise FileNotFoundError(
            f"{benchmark.column}: {benchmark.dataset} can be read neither from the Hub nor from its cache "
            f"({type(error).__name__}: {error}); {how_to_get(benchmark)}"
        ) from error


def decoded_row(data: Any, index: int) -> dict[str, Any]:
    """Row `index` of a dataset, images decoded.

    Raises:
        DamagedRow: If an image cannot be decoded.
    """
    from PIL import Image

    try:
        with _whole_images_alone():
            row: dict[str, Any] = data[index]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedRow(f"an image cannot be read ({type(error).__name__}: {error})") from error
    return row


def rgb(image: Any) -> Any:
    """The image in RGB.

    Raises:
        DamagedRow: If there is none.
    """
    if image is None:
        raise DamagedRow("its image is missing")
    return image.convert("RGB")


@contextmanager
def _whole_images_alone() -> Iterator[None]:
    """Lets Pillow refuse truncated images, which lmms-eval makes it fill up in silence."""
    from PIL import ImageFile

    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
