"""The `language_persistent` column in a dataset's parquet files: read per episode, and replaced without touching the rest.

The column holds the rows of an episode on each of its frames. LeRobot's `lerobot-annotate` writes further rows into it (plans,
memories, other wordings of the task); those stay as they are.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from syvla.durable_files import write_atomically, write_json
from syvla.processing.robot_data.lerobot_format import (
    INFO_PATH,
    LANGUAGE_PERSISTENT,
    huggingface_features,
    read_info,
)

LANGUAGE_FEATURE = {"dtype": "language", "shape": [1], "names": None}
_COMPRESSIONS = {"SNAPPY", "GZIP", "ZSTD", "LZ4", "BROTLI", "NONE"}

Rows = list[dict[str, Any]]
"""Rows of one episode: `role`, `content`, `style`, `timestamp` (seconds), `camera`, `tool_calls`."""


def read_rows(path: Path) -> dict[int, Rows]:
    """The rows of each episode in a data file; empty where the file has no such column.

    Raises:
        ValueError: The column is of another kind.
    """
    found: dict[int, Rows] = {}
    with pq.ParquetFile(path) as file:
        if LANGUAGE_PERSISTENT not in file.schema_arrow.names:
            return {}
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["episode_index", LANGUAGE_PERSISTENT])
            column = table.column(LANGUAGE_PERSISTENT).combine_chunks()
            for episode, start, _ in _episodes(table):
                if episode not in found:
                    found[episode] = _row_list(column[start].as_py(), path)
    return found


def has_column(path: Path) -> bool:
    """Whether a data file has the column."""
    return LANGUAGE_PERSISTENT in pq.read_schema(path).names


def declare_column(root: Path) -> bool:
    """Adds the column to `meta/info.json` if it is not listed; returns whether it was added.

    The list comes first and the files follow. After a crash in between, this project's reader takes a file without the column
    as one whose episodes have no sub-tasks; LeRobot refuses the dataset until `syvla-annotate` has been started again.
    """
    info = read_info(root)
    if LANGUAGE_PERSISTENT in info.features:
        return False
    raw = copy.deepcopy(info.raw)
    raw["features"][LANGUAGE_PERSISTENT] = dict(LANGUAGE_FEATURE)
    write_json(root / INFO_PATH, raw)
    return True


def replace_subtasks(path: Path, changes: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
    """Writes a data file anew with other sub-tasks for some of its episodes; in one step, row group by row group.

    All other columns, rows of other styles and the row groups stay. The file gets the column if it has none.

    Args:
        path: The data file.
        changes: Episode to its new rows of style "subtask".

    Raises:
        ValueError: The column is of another kind than LeRobot's, or the file changed while it was read.
    """
    before = _state(path)
    with pq.ParquetFile(path) as file:
        schema, kind = _schema(file, path)

        def write(temporary: Path) -> None:
            _copy(file, temporary, schema, kind, changes, path)
            if _state(path) != before:
                raise ValueError(f"{path}: another program wrote the file meanwhile; close it and save again")

        write_atomically(path, write)


def _copy(
    file: pq.ParquetFile,
    target: Path,
    schema: pa.Schema,
    kind: pa.DataType,
    changes: Mapping[int, Sequence[Mapping[str, Any]]],
    path: Path,
) -> None:
    compression = _compression(file)
    with pq.ParquetWriter(target, schema, compression=compression, use_dictionary=True) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            if not len(table):
                continue
            column = _changed_column(table, kind, changes, path)
            columns = [column if name == LANGUAGE_PERSISTENT else table.column(name) for name in schema.names]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(table))


def _changed_column(
    table: pa.Table, kind: pa.DataType, changes: Mapping[int, Sequence[Mapping[str, Any]]], path: Path
) -> pa.ChunkedArray:
    """The column of a row group (rows,), of type `kind`."""
    present = LANGUAGE_PERSISTENT in table.column_names
    old = table.column(LANGUAGE_PERSISTENT).combine_chunks() if present else None
    chunks = []
    for episode, start, stop in _episodes(table):
        part = None if old is None else old.slice(start, stop - start)
        if part is not None and episode not in changes and part.type.equals(kind):
            chunks.append(part)
            continue
        rows = [] if part is None else _row_list(part[0].as_py(), path)
        if part is not None and any(_row_list(value.as_py(), path) != rows for value in part):
            raise ValueError(
                f"{path}: episode {episode}: {LANGUAGE_PERSISTENT} differs between its frames, where LeRobot repeats the same"
                " rows; restore the file"
            )
        if episode in changes:
            rows = [row for row in rows if row.get("style") != "subtask"] + [dict(row) for row in changes[episode]]
            rows.sort(key=lambda row: (float(row["timestamp"]), row["style"] or "", row["role"] or ""))  # as LeRobot
        chunks.append(_repeated(rows, stop - start, kind))
    return pa.chunked_array(chunks, type=kind)


def _repeated(rows: Sequence[Mapping[str, Any]], length: int, kind: pa.DataType) -> pa.Array:
    """A column (length,) with the same rows on each frame."""
    fields = [kind.value_type.field(index) for index in range(kind.value_type.num_fields)]
    children = [_values([row.get(field.name) for row in rows], field.type) for field in fields]
    struct = pa.StructArray.from_arrays(children, fields=fields)
    repeated = struct.take(pa.array(np.tile(np.arange(len(rows)), length), pa.int64()))
    offsets = pa.array(np.arange(length + 1, dtype=np.int32) * len(rows))
    return pa.ListArray.from_arrays(offsets, repeated, type=kind)


def _values(values: list[Any], kind: pa.DataType) -> pa.Array:
    if all(value is None for value in values):
        return pa.nulls(len(values), kind)
    if pa.types.is_list(kind) and isinstance(kind.value_type, pa.BaseExtensionType):  # tool calls: JSON texts
        texts = [None if v is None else [t if isinstance(t, str) else json.dumps(t) for t in v] for v in values]
        stored = pa.array(texts, pa.list_(kind.value_type.storage_type))
        items = pa.ExtensionArray.from_storage(kind.value_type, stored.values)
        return pa.ListArray.from_arrays(stored.offsets, items, type=kind, mask=stored.is_null())
    return pa.array(values, kind)


def _schema(file: pq.ParquetFile, path: Path) -> tuple[pa.Schema, pa.DataType]:
    """Schema of the new file and type of its column: the old one where it can hold sub-tasks, else LeRobot's."""
    schema = file.schema_arrow
    standard = huggingface_features({LANGUAGE_PERSISTENT: LANGUAGE_FEATURE}).arrow_schema.field(0)
    if LANGUAGE_PERSISTENT in schema.names:
        position = schema.get_field_index(LANGUAGE_PERSISTENT)
        kind = schema.field(position).type
        if not pa.types.is_list(kind):
            raise ValueError(f"{path}: {LANGUAGE_PERSISTENT} is {kind}, expected a list of rows; restore the file")
        if _holds_subtasks(kind):
            return schema, kind
        return schema.set(position, standard), standard.type
    metadata = dict(schema.metadata or {})
    if described := _described(metadata.get(b"huggingface")):
        metadata[b"huggingface"] = described
    return schema.append(standard).with_metadata(metadata or None), standard.type


def _holds_subtasks(kind: pa.DataType) -> bool:
    """Whether a list type as `lerobot-annotate` infers it has every field that a sub-task needs; else all were empty."""
    row = kind.value_type
    if not pa.types.is_struct(row):
        return False
    fields = {row.field(index).name: row.field(index).type for index in range(row.num_fields)}
    texts = all(name in fields and pa.types.is_string(fields[name]) for name in ("role", "content", "style"))
    return texts and "timestamp" in fields and pa.types.is_floating(fields["timestamp"])


def _described(footer: bytes | None) -> bytes | None:
    """The footer of `datasets` with the column added; None where there is none, or none that can be read."""
    own = huggingface_features({LANGUAGE_PERSISTENT: LANGUAGE_FEATURE}).arrow_schema.metadata[b"huggingface"]
    try:
        content = json.loads(footer or b"")
        content["info"]["features"].update(json.loads(own)["info"]["features"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return json.dumps(content).encode()


def _compression(file: pq.ParquetFile) -> str:
    if file.num_row_groups and file.metadata.num_columns:
        name = file.metadata.row_group(0).column(0).compression
        if name in _COMPRESSIONS:
            return str(name)
    return "SNAPPY"


def _episodes(table: pa.Table) -> Iterator[tuple[int, int, int]]:
    """(episode, first row, row after the last) of each run of rows."""
    owner = table.column("episode_index").to_numpy()
    edges = np.flatnonzero(np.diff(owner)) + 1
    for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(owner)], strict=True):
        if start < stop:
            yield int(owner[start]), start, stop


def _row_list(value: Any, path: Path) -> Rows:
    rows = value or []
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("timestamp"), float | int) or "style" not in row:
            raise ValueError(f"{path}: {LANGUAGE_PERSISTENT} holds {row!r:.80}, expected rows with style and timestamp")
    return list(rows)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
