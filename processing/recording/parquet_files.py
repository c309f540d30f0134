"""Parquet files that grow by whole episodes, replaced in one step each time, so that a crash never tears one.

A parquet file cannot be appended to. While a file is small it is written anew with one more episode and renamed over
the old one; once it exceeds a limit, the next episode starts the next file. That limit bounds the cost per episode.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from syvla.durable_files import write_atomically
from syvla.processing.robot_data.lerobot_format import CHUNKS_SIZE, next_file, render_path


class GrowingTable:
    """A numbered series of parquet files of which the last one grows.

    Args:
        root: Root of the dataset.
        template: Path of each file, with `chunk_index` and `file_index`.
        schema: Arrow schema with its footer metadata.
        last: Chunk and file index of the last file in use; None where there is none yet.
        row_group_per_episode: Whether each episode is its own row group, as LeRobot writes `data/`.
        max_rows: A file with more rows is full.
        max_bytes: A file that takes more on disk is full.
    """

    def __init__(
        self,
        root: Path,
        template: str,
        schema: pa.Schema,
        last: tuple[int, int] | None,
        *,
        row_group_per_episode: bool,
        max_rows: int = 2**40,
        max_bytes: int = 8 * 2**20,
        chunks_size: int = CHUNKS_SIZE,
    ):
        self.root, self.template, self.schema = root, template, schema
        self._row_groups, self._max_rows, self._max_bytes = row_group_per_episode, max_rows, max_bytes
        self._chunks_size = chunks_size
        self.last = last
        self._tables: list[pa.Table] = []  # the episodes of the last file, if it may still grow

    def path(self, position: tuple[int, int]) -> Path:
        return self.root / render_path(self.template, chunk_index=position[0], file_index=position[1])

    def next_position(self) -> tuple[int, int]:
        """Chunk and file index of the file that the next episode will be in."""
        if self.last is None:
            return (0, 0)
        return self.last if self._tables else next_file(*self.last, self._chunks_size)

    def append(self, table: pa.Table) -> None:
        """Adds one episode's rows to the file at `next_position()`; on return they are on disk."""
        position = self.next_position()
        tables = [*self._tables, table]
        path = self.path(position)
        write_atomically(path, lambda temporary: self._write(temporary, tables))
        self.last = position
        full = path.stat().st_size > self._max_bytes or sum(map(len, tables)) > self._max_rows
        if not self._row_groups:
            tables = [pa.concat_tables(tables).combine_chunks()]  # rows of their own take 0.15 MB each
        self._tables = [] if full else tables

    def recover(self, column: str, limit: int) -> None:
        """Drops what an interrupted save left behind: rows with `column >= limit` and a file after the last one.

        The last file goes on growing if it is ours and small enough.
        """
        following = (0, 0) if self.last is None else next_file(*self.last, self._chunks_size)
        self.path(following).unlink(missing_ok=True)
        if self.last is None:
            return
        path = self.path(self.last)
        with pq.ParquetFile(path) as file:
            groups = [file.read_row_group(index) for index in range(file.num_row_groups)]
            ours = file.schema_arrow.equals(self.schema)
        kept = [_rows_below(group, column, limit) for group in groups]
        kept = [group for group in kept if len(group)]
        if sum(map(len, kept)) < sum(map(len, groups)):
            write_atomically(path, lambda temporary: self._write(temporary, kept, groups[0].schema))
        if ours and path.stat().st_size <= self._max_bytes and sum(map(len, kept)) <= self._max_rows:
            self._tables = kept

    def _write(self, path: Path, tables: list[pa.Table], schema: pa.Schema | None = None) -> None:
        if not self._row_groups:
            tables = [pa.concat_tables(tables)]
        with pq.ParquetWriter(path, schema or self.schema, compression="snappy", use_dictionary=True) as writer:
            for table in tables:
                writer.write_table(table)


def _rows_below(table: pa.Table, column: str, limit: int) -> pa.Table:
    keep = [value < limit for value in table.column(column).to_pylist()]
    return table if all(keep) else table.filter(pa.array(keep))
