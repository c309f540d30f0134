"""Random access to the images inside parquet files.

Parquet can only be decoded in pages of many rows. Small datasets are therefore held in memory as they are stored (PNG);
larger ones are rewritten once as Arrow files in a cache folder, which the operating system maps into memory.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm.auto import tqdm

from syvla.durable_files import write_atomically
from syvla.processing.image_inputs import to_rgb

MEMORY_LIMIT = 2**30  # bytes of stored images up to which they are held in memory
_FORMATS = ("PNG", "JPEG")

ImageColumns = dict[str, tuple[np.ndarray, list[pa.Array]]]
"""Camera feature -> (first row of each chunk and their end, chunks of encoded images)."""


class ImageStore:
    """Stored images of some cameras by file and row.

    Forked workers share what is in memory; spawned ones load it themselves on first use.

    Args:
        root: Root of the dataset.
        files: Parquet files relative to it.
        sizes: Expected (height, width) per camera feature.
        memory_limit: Bytes up to which all images are held in memory.
        cache_dir: Folder of the Arrow files above that; None is `syvla/arrow` in the Hugging Face cache.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        sizes: dict[str, tuple[int, int]],
        memory_limit: int = MEMORY_LIMIT,
        cache_dir: str | Path | None = None,
    ):
        self._root, self._files, self._sizes = root, list(files), sizes
        self._limit, self._cache_dir = memory_limit, cache_dir
        self._arrays: dict[int, ImageColumns] = {}
        self._in_memory = self._stored_bytes() <= memory_limit
        if self._in_memory:
            for file in range(len(self._files)):
                self._columns(file)

    def read(self, file: int, row: int, keys: Sequence[str]) -> list[np.ndarray]:
        """Decodes the images of some cameras in one row.

        Args:
            file: Number of the file.
            row: Row in it.
            keys: Camera features.

        Returns:
            uint8 (H, W, 3) for each of `keys`.

        Raises:
            ValueError: An image is missing, is neither PNG nor JPEG, or has another size than expected; names file, row and
                camera.
        """
        return decode_row(self._columns(file), row, keys, self._sizes, str(self._root / self._files[file]))

    def _columns(self, file: int) -> ImageColumns:
        if file not in self._arrays:
            path = self._root / self._files[file]
            table = read_images(path, list(self._sizes)) if self._in_memory else self._map(path)
            self._arrays[file] = image_columns(table)
        return self._arrays[file]

    def _stored_bytes(self) -> int:
        total = 0
        for file in self._files:
            metadata = pq.read_metadata(self._root / file)
            for group in range(metadata.num_row_groups):
                for column in range(metadata.num_columns):
                    chunk = metadata.row_group(group).column(column)
                    if chunk.path_in_schema.removesuffix(".bytes") in self._sizes:
                        total += chunk.total_uncompressed_size
        return total

    def _map(self, path: Path) -> pa.Table:
        cached = self._cache_folder() / f"{_fingerprint(path, list(self._sizes))}.arrow"
        if not cached.is_file():
            write_atomically(cached, lambda temporary: _convert(path, temporary, list(self._sizes)))
        with pa.memory_map(str(cached)) as file:  # the mapping outlives the open file, of which a process has few
            return pa.ipc.open_file(file).read_all()

    def _cache_folder(self) -> Path:
        if self._cache_dir is not None:
            return Path(self._cache_dir)
        from huggingface_hub.constants import HF_HOME

        return Path(HF_HOME) / "syvla" / "arrow"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}


def image_columns(table: pa.Table) -> ImageColumns:
    """The columns of a table of images, ready for single rows."""
    return {
        key: (np.cumsum([0, *map(len, table.column(key).chunks)]), table.column(key).chunks)
        for key in table.column_names
    }


def decode_row(
    columns: ImageColumns, row: int, keys: Sequence[str], sizes: dict[str, tuple[int, int]], where: str
) -> list[np.ndarray]:
    """Decodes the images of some cameras in one row, see `ImageStore.read`; `where` is what errors call the file."""
    images = []
    for key in keys:
        offsets, chunks = columns[key]
        chunk = int(np.searchsorted(offsets, row, side="right")) - 1
        data = chunks[chunk][row - int(offsets[chunk])].as_py()
        try:
            if data is None:
                raise ValueError("the image is not embedded in the parquet file; convert the dataset so that it is")
            image = to_rgb(Image.open(io.BytesIO(data), formats=_FORMATS))
            if (size := (image.height, image.width)) != sizes[key]:
                raise ValueError(
                    f"the image is {size[0]} x {size[1]} (height x width), meta/info.json says "
                    f"{sizes[key][0]} x {sizes[key][1]}"
                )
            images.append(np.array(image))
        except (ValueError, OSError, SyntaxError) as error:
            raise ValueError(f"{where}: row {row}, {key}: {error}") from error
    return images


def read_images(path: Path, keys: list[str], groups: Sequence[int] | None = None) -> pa.Table:
    """The images' bytes per camera, from the stored struct<bytes, path> (or plain binary) columns."""
    with pq.ParquetFile(path) as file:
        missing = [key for key in keys if key not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"{path}: columns {missing} are missing, meta/info.json lists them; restore the file")
        nested = [pa.types.is_struct(file.schema_arrow.field(key).type) for key in keys]
        leaves = [f"{key}.bytes" if struct else key for key, struct in zip(keys, nested, strict=True)]
        table = file.read(columns=leaves) if groups is None else file.read_row_groups(list(groups), columns=leaves)
    columns = [
        pa.chunked_array([chunk.field("bytes") for chunk in table.column(key).chunks], pa.binary())
        if struct
        else table.column(key)
        for key, struct in zip(keys, nested, strict=True)
    ]
    return pa.table(dict(zip(keys, columns, strict=True)))


def _convert(path: Path, target: Path, keys: list[str]) -> None:
    schema = pa.schema([(key, pa.binary()) for key in keys])
    groups = pq.read_metadata(path).num_row_groups
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for group in tqdm(range(groups), desc=f"Unpacking {path.name}", disable=groups < 50, leave=False):
            writer.write_table(read_images(path, keys, [group]).cast(schema))


def _fingerprint(path: Path, keys: list[str]) -> str:
    status = path.resolve().stat()
    text = "\0".join([str(path.resolve()), str(status.st_size), str(status.st_mtime_ns), *keys])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
