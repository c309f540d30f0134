"""Numpy arrays in msgpack, in the codecs that robot clients use; safe to decode from anyone.

| name | array | who |
|---|---|---|
| `openpi` | `{b"__ndarray__": True, b"data", b"dtype", b"shape"}`, scalars `__npgeneric__` | openpi-client |
| `openpi-str` | the same with text keys | vla-eval |
| `msgpack-numpy` | `{b"nd": True, b"type", b"kind", b"shape", b"data"}`, scalars `nd: False` | PyPI msgpack-numpy, GR00T N1.7 |
| `gr00t` | `{"__ndarray_class__": True, "as_npy": .npy bytes}` | GR00T N1.5 and N1.6 |

Bytes from outside become numbers, texts, lists, maps with text keys, or arrays of booleans, integers and floats, and
nothing else: no pickle, no object or structured dtypes (numpy would take their bytes for pointers), no extension types.
Every size is checked before memory is taken for it. Imports numpy and msgpack only, so that light clients can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from .array_bytes import DTYPES, ArrayError, array_from_buffer, array_from_npy, npy_bytes, scalar_of, shown

CODECS = ("openpi", "openpi-str", "msgpack-numpy", "gr00t")


class DecodeError(ValueError):
    """Bytes that are no acceptable message; the text names the key, what was expected and what came."""


@dataclass(frozen=True)
class CodecLimits:
    """What a message may hold. Ours: three uncompressed 1080p images fit, and decoding never takes much more memory
    than the message itself.

    Attributes:
        max_message_bytes: Bytes of the whole message.
        max_array_bytes: Bytes of one array.
        max_array_dims: Dimensions of one array.
        max_depth: Levels of maps and lists inside each other.
        max_length: Entries of one map or list. msgpack takes memory for all of them at the first byte, at every level.
        max_elements: Entries of all maps and lists together; arrays count as one.
        max_key_length: Characters of a key.
    """

    max_message_bytes: int = 32 * 2**20
    max_array_bytes: int = 16 * 2**20
    max_array_dims: int = 8
    max_depth: int = 16
    max_length: int = 2048
    max_elements: int = 20_000
    max_key_length: int = 256


DEFAULT_LIMITS = CodecLimits()


# ---------------------------------------------------------------------- packing


def pack(obj: Any, codec: str = "openpi") -> bytes:
    """Encodes maps, lists, texts, bytes, numbers, None, and numpy arrays and scalars.

    Args:
        obj: What to encode. Tuples become lists.
        codec: One of `CODECS`.

    Raises:
        ValueError: Unknown codec, or an array of another kind than bool, int, uint or float.
    """
    if codec not in _ENCODERS:
        raise ValueError(f"codec: expected one of {', '.join(CODECS)}, got {codec!r}")
    return msgpack.packb(obj, default=_ENCODERS[codec], use_bin_type=True)


def _checked_kind(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise ValueError(
            f"pack: expected maps, lists, numbers, texts, bytes and numpy arrays, got {type(value).__name__}"
        )
    if value.dtype.str.lstrip("<>|=") not in DTYPES:
        raise ValueError(
            f"pack: expected an array of bool, int, uint or float of up to 8 bytes, got dtype {value.dtype}; convert it "
            "(bfloat16 to float32, texts to lists)"
        )
    return value


def _encode_openpi(value: Any) -> dict[Any, Any]:
    value = _checked_kind(value)
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _encode_openpi_str(value: Any) -> dict[Any, Any]:
    return {key.decode(): entry for key, entry in _encode_openpi(value).items()}


def _encode_msgpack_numpy(value: Any) -> dict[Any, Any]:
    value = _checked_kind(value)
    if isinstance(value, np.ndarray):
        array = {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": value.shape}
        return {**array, b"data": value.tobytes()}
    return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}


def _encode_gr00t(value: Any) -> dict[Any, Any]:
    return {"__ndarray_class__": True, "as_npy": npy_bytes(np.asarray(_checked_kind(value)))}


_ENCODERS: dict[str, Callable[[Any], dict[Any, Any]]] = {
    "openpi": _encode_openpi,
    "openpi-str": _encode_openpi_str,
    "msgpack-numpy": _encode_msgpack_numpy,
    "gr00t": _encode_gr00t,
}


# ---------------------------------------------------------------------- unpacking


def unpack(data: bytes, limits: CodecLimits = DEFAULT_LIMITS) -> tuple[Any, str]:
    """Decodes a message in any of the codecs.

    Args:
        data: The whole message.
        limits: What is accepted.

    Returns:
        (value, codec to answer in). Keys are texts, whichever way they were sent; arrays are read-only views of the
        message's bytes. A message without arrays counts as `openpi`.

    Raises:
        DecodeError: Anything else.
    """
    if len(data) > limits.max_message_bytes:
        raise DecodeError(f"message: expected at most {limits.max_message_bytes} bytes, got {len(data)}")
    budget = _Budget(limits)
    try:
        raw = msgpack.unpackb(
            data,
            raw=False,
            object_pairs_hook=budget.map,
            list_hook=budget.list,
            ext_hook=_refuse_extension,
            max_array_len=limits.max_length,
            max_map_len=limits.max_length,
        )
    except DecodeError:
        raise
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError, RecursionError) as error:
        kind = type(error).__name__
        raise DecodeError(
            f"message: expected one msgpack value, got {len(data)} other bytes ({kind}: {error})"
        ) from None
    reader = _Reader(limits)
    value = reader.read(raw, "", 0)
    return value, reader.codec or "openpi"


def _refuse_extension(code: int, data: bytes) -> Any:
    raise DecodeError(f"message: expected no msgpack extension types, got type {code} of {len(data)} bytes")


class _Budget:
    """Counts entries while msgpack decodes, so that few bytes cannot become many objects."""

    def __init__(self, limits: CodecLimits) -> None:
        self.limit = self.left = limits.max_elements

    def map(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._spend(1 + len(pairs))
        result = dict(pairs)
        if len(result) != len(pairs):
            raise DecodeError(f"message: expected every key once, got {shown([key for key, _ in pairs])}")
        return result

    def list(self, entries: list[Any]) -> list[Any]:
        self._spend(1 + len(entries))
        return entries

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise DecodeError(f"message: expected at most {self.limit} map and list entries, got more")


class _Reader:
    """Turns decoded msgpack into plain values and arrays; remembers the first array codec it meets."""

    def __init__(self, limits: CodecLimits) -> None:
        self.limits = limits
        self.codec: str | None = None

    def read(self, value: Any, path: str, depth: int) -> Any:
        if depth > self.limits.max_depth:
            raise DecodeError(f"{path}: expected at most {self.limits.max_depth} levels of maps and lists, got more")
        if isinstance(value, dict):
            return self._map(value, path, depth)
        if isinstance(value, list):
            return [self.read(entry, f"{path}[{i}]", depth + 1) for i, entry in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        raise DecodeError(
            f"{path or 'message'}: expected numbers, texts, bytes, lists, maps, got {type(value).__name__}"
        )

    def _map(self, raw: dict[Any, Any], path: str, depth: int) -> Any:
        by_name: dict[str, Any] = {}
        for key, entry in raw.items():
            name = _key_text(key, path, self.limits.max_key_length)
            if name in by_name:
                raise DecodeError(f"{_join(path, name)}: expected the key once, got it as text and as bytes")
            by_name[name] = entry
        marker, codec = _codec_of(raw, by_name)
        if marker is None:
            return {name: self.read(entry, _join(path, name), depth + 1) for name, entry in by_name.items()}
        self.codec = self.codec or codec
        try:
            return self._array(marker, by_name)
        except ArrayError as error:
            raise DecodeError(f"{path or 'message'}: {error}") from None

    def _array(self, marker: str, fields: Mapping[str, Any]) -> Any:
        limits = self.limits
        if marker == "__ndarray_class__":
            return array_from_npy(fields.get("as_npy"), limits.max_array_bytes, limits.max_array_dims)
        if marker == "__npgeneric__":
            return scalar_of(fields.get("data"), fields.get("dtype"))
        if marker == "nd":
            kind = fields.get("kind", b"")
            if kind not in (b"", ""):
                raise ArrayError(f"kind: expected an empty one (plain numbers), got {shown(kind)}")
            shape = fields.get("shape") if fields["nd"] else []
            array = array_from_buffer(
                fields.get("data"), fields.get("type"), shape, limits.max_array_bytes, limits.max_array_dims
            )
            return array if fields["nd"] else array[()]
        return array_from_buffer(
            fields.get("data"), fields.get("dtype"), fields.get("shape"), limits.max_array_bytes, limits.max_array_dims
        )


def _codec_of(raw: Mapping[Any, Any], by_name: Mapping[str, Any]) -> tuple[str | None, str]:
    """The key that marks a map as an array, or None, and the codec that writes it so."""
    for marker in ("__ndarray__", "__npgeneric__"):
        if marker in by_name:
            return marker, "openpi" if marker.encode() in raw else "openpi-str"
    if "nd" in by_name and "type" in by_name and isinstance(by_name["nd"], bool):
        return "nd", "msgpack-numpy"
    if "__ndarray_class__" in by_name:
        return "__ndarray_class__", "gr00t"
    return None, ""


def _key_text(key: Any, path: str, limit: int) -> str:
    try:
        text = key.decode() if isinstance(key, bytes) else str(key)
    except UnicodeDecodeError:
        raise DecodeError(f"{path or 'message'}: expected keys of UTF-8 text, got {shown(key)}") from None
    if len(text) > limit:
        raise DecodeError(f"{path or 'message'}: expected keys of at most {limit} characters, got {len(text)}")
    return text


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
