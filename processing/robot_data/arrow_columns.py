"""Between numpy and the Arrow columns of LeRobot's parquet files. Nothing here unpickles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .lerobot_format import IMAGE_DTYPES
from .statistics import STATISTICS, has_statistics


def to_arrow(values: Any, kind: pa.DataType) -> pa.Array:
    """One feature's column, numpy (n, *shape) or a list of texts or images, as its Arrow type."""
    if isinstance(kind, pa.ExtensionType):  # datasets' ArrayXD
        return pa.ExtensionArray.from_storage(kind, pa.array(values.tolist(), kind.storage_type))
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    if isinstance(values, np.ndarray):
        return pa.array(values.reshape(-1), kind)
    return pa.array(values, kind)


def repeat_language_rows(rows: Sequence[Mapping[str, Any]], length: int, kind: pa.DataType) -> pa.Array:
    """A language column (length,) that holds the same rows on every frame; rows have no tool calls."""
    fields = [kind.value_type.field(index) for index in range(kind.value_type.num_fields)]
    children = []
    for field in fields:
        values = [row[field.name] for row in rows]
        empty = all(value is None for value in values)
        children.append(pa.nulls(len(rows), field.type) if empty else pa.array(values, field.type))
    struct = pa.StructArray.from_arrays(children, fields=fields)
    repeated = struct.take(pa.array(np.tile(np.arange(len(rows)), length)))
    offsets = pa.array(np.arange(length + 1, dtype=np.int32) * len(rows))
    return pa.ListArray.from_arrays(offsets, repeated, type=kind)


def to_numpy(column: pa.ChunkedArray, shape: Sequence[int], dtype: str | np.dtype, name: str) -> np.ndarray:
    """A numeric column as numpy (n, *shape).

    Raises:
        ValueError: The column's values are not `shape` each, hold nulls, or cannot be `dtype`; names the column.
    """
    size = int(np.prod(shape))
    length = len(column)
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of nothing
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if array.null_count:
        raise ValueError(f"{name}: {array.null_count} missing values; repair or drop the episodes that hold them")
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            lengths = np.diff(array.offsets.to_numpy())
            if len(lengths) and lengths.min() != lengths.max():
                raise ValueError(f"{name}: rows have {lengths.min()} to {lengths.max()} values, expected {size} each")
            array = array.flatten()
        elif pa.types.is_fixed_size_list(array.type):
            array = array.flatten()
        else:
            break
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        raise ValueError(f"{name}: holds {array.type}, expected numbers as meta/info.json says ({dtype})")
    if array.null_count:
        raise ValueError(f"{name}: {array.null_count} missing values; repair or drop the episodes that hold them")
    if len(array) != length * size:
        found = len(array) / max(length, 1)
        raise ValueError(
            f"{name}: rows have {found:g} values, meta/info.json says {size}; correct its shape or the data"
        )
    values: np.ndarray = array.to_numpy(zero_copy_only=False).astype(dtype, copy=False).reshape(length, *shape)
    return values


def episode_schema(features: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Schema of `meta/episodes`: one row per episode."""
    fields: list[tuple[str, pa.DataType]] = [
        ("episode_index", pa.int64()),
        ("tasks", pa.list_(pa.string())),
        ("length", pa.int64()),
        ("data/chunk_index", pa.int64()),
        ("data/file_index", pa.int64()),
        ("dataset_from_index", pa.int64()),
        ("dataset_to_index", pa.int64()),
    ]
    for key, feature in features.items():
        if feature["dtype"] == "video":
            fields += [(f"videos/{key}/{name}", pa.int64()) for name in ("chunk_index", "file_index")]
            fields += [(f"videos/{key}/{name}", pa.float64()) for name in ("from_timestamp", "to_timestamp")]
    for key, feature in features.items():
        if has_statistics(feature):
            kind: pa.DataType = pa.float64()
            for _ in range(3 if feature["dtype"] in IMAGE_DTYPES else 1):
                kind = pa.list_(kind)
            fields += [(f"stats/{key}/{name}", kind) for name in STATISTICS]
            fields.append((f"stats/{key}/count", pa.list_(pa.int64())))
    fields += [("meta/episodes/chunk_index", pa.int64()), ("meta/episodes/file_index", pa.int64())]
    return pa.schema(fields)
