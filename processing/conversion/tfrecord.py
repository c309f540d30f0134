"""TFRecord files and the `tf.train.Example` in them, without TensorFlow: two small, published wire formats.

A record is its length (8 bytes), the length's checksum, the data and its checksum, all little-endian; checksums are CRC-32C,
turned by 15 bits and shifted by a constant. An Example is a protocol buffer: a map from names to lists of bytes, float32 or
int64. TensorFlow with tensorflow-datasets takes 1.8 GB for the same, and pins numpy and protobuf.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .source import SourceError

_HEADER, _FOOTER = 12, 4
_MASK_DELTA = 0xA282EAD8
_MAX_FEATURES = 100_000
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3  # fields of tf.train.Feature


@dataclass(frozen=True)
class Record:
    """Where a record's data lies in its file."""

    offset: int
    length: int


def masked_checksum(data: bytes) -> int:
    """The checksum that TFRecord keeps of some bytes."""
    try:
        import google_crc32c
    except ImportError as error:
        raise ImportError("reading TFRecord needs google-crc32c: pip install 'syvla[convert]'") from error
    value = int(google_crc32c.value(data))
    return (((value >> 15) | (value << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def index_records(path: Path) -> tuple[list[Record], str | None]:
    """(records of a file, why there are no more of them, or None at its regular end). Reads the headers alone."""
    size = path.stat().st_size
    found: list[Record] = []
    offset = 0
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            header = file.read(_HEADER)
            if len(header) < _HEADER:
                return found, f"record {len(found)} is cut off in its header"
            length, checksum = struct.unpack("<QI", header)
            if masked_checksum(header[:8]) != checksum:
                return (
                    found,
                    f"record {len(found)}: the checksum of its length differs; the file is damaged from there on",
                )
            if offset + _HEADER + length + _FOOTER > size:
                here = size - offset - _HEADER
                return found, f"record {len(found)} is cut off: {length + _FOOTER} bytes announced, {here} there"
            found.append(Record(offset + _HEADER, length))
            offset += _HEADER + length + _FOOTER
    return found, None


def read_record(path: Path, record: Record) -> bytes:
    """The data of a record; SourceError if its checksum differs."""
    with path.open("rb") as file:
        file.seek(record.offset)
        data, footer = file.read(record.length), file.read(_FOOTER)
    if len(data) < record.length or len(footer) < _FOOTER:
        raise SourceError("the record is cut off")
    if masked_checksum(data) != struct.unpack("<I", footer)[0]:
        raise SourceError("the record's checksum differs; it is damaged")
    return data


class Example:
    """A parsed `tf.train.Example`; its lists are decoded when they are asked for.

    Raises:
        SourceError: The bytes are no Example.
    """

    def __init__(self, data: bytes):
        self._features: dict[str, memoryview] = {}
        for field, value in _fields(memoryview(data)):
            if field != 1:
                continue
            for inner, entry in _fields(_message(value)):
                if inner == 1:
                    parts = dict(_fields(_message(entry)))
                    name = bytes(_message(parts.get(1, memoryview(b"")))).decode("utf-8", errors="replace")
                    self._features[name] = _message(parts.get(2, memoryview(b"")))
                if len(self._features) > _MAX_FEATURES:
                    raise SourceError(f"more than {_MAX_FEATURES} features in one record")

    def __contains__(self, name: str) -> bool:
        return name in self._features

    def names(self) -> list[str]:
        return sorted(self._features)

    def blobs(self, name: str) -> list[memoryview]:
        """A list of bytes."""
        return [_message(value) for field, value in _fields(self._list(name, _BYTES)) if field == 1]

    def floats(self, name: str) -> np.ndarray:
        """A list of float32."""
        parts = []
        for field, value in _fields(self._list(name, _FLOATS)):
            if field == 1:
                if isinstance(value, int) or len(value) % 4:
                    raise SourceError(f"{name}: {value!r:.40} is no list of float32")
                parts.append(np.frombuffer(value, "<f4"))
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def integers(self, name: str) -> np.ndarray:
        """A list of int64."""
        parts = [
            np.array([value], np.uint64).view(np.int64) if isinstance(value, int) else _varints(value)
            for field, value in _fields(self._list(name, _INTEGERS))
            if field == 1
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def numbers(self, name: str) -> np.ndarray:
        """A list of float32 or of int64, whichever it is."""
        kinds = {field for field, _ in _fields(self._features[name])}
        return self.floats(name) if _FLOATS in kinds else self.integers(name)

    def _list(self, name: str, kind: int) -> memoryview:
        for field, value in _fields(self._features[name]):
            if field == kind:
                return _message(value)
            raise SourceError(f"{name}: holds another type of list than features.json says")
        return memoryview(b"")


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise SourceError("the record is no tf.train.Example (a number in place of a message)")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(number, value) of the fields of a protocol-buffer message; float32 and float64 as their bytes."""
    position, size = 0, len(data)
    while position < size:
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if kind == 2:
            length, position = _varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise SourceError(f"the record is no tf.train.Example (wire type {kind})")
        if position + length > size:
            raise SourceError("the record is no tf.train.Example (a field reaches beyond its end)")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise SourceError("the record is no tf.train.Example (an endless or cut number)")


def _varints(data: memoryview) -> np.ndarray:
    """Packed variable-length integers to int64, all at once: an uint8 tensor has thousands."""
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    if not len(raw):
        return np.zeros(0, np.int64)
    if not len(ends) or ends[-1] != len(raw) - 1:
        raise SourceError("the record is no tf.train.Example (a cut number)")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise SourceError("the record is no tf.train.Example (a number of more than ten bytes)")
    values = np.zeros(len(ends), np.uint64)
    for byte in range(int(lengths.max())):
        longer = lengths > byte
        part = (raw[starts[longer] + byte] & np.uint8(0x7F)).astype(np.uint64)
        values[longer] |= part << np.uint64(7 * byte)
    return values.view(np.int64)
