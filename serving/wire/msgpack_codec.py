"""Numpy arrays in msgpack, in the codecs that robot clients use; safe to decode from anyone.

| name | array | who |
|---|---|---|
| `openpi` | `{b"__ndarray__": True, b"data", b"dtype", b"shape"}`, scalars `__npgeneric__` | openpi-client |
| `openpi-str` | the same with text keys | vla-eval |
| `msgpack-numpy` | `{b"nd": True, b"type", b"kind", b"shape", b"data"}`, scalars `nd: False` | PyPI msgpack-numpy, GR00T N1.7 |
| `gr00t` | `{"__ndarray_class__": True, "as_npy": .npy bytes}` | GR00T N1.5 and N1.6 |

Bytes from outside become numbers, texts, lists, maps with text keys, or arrays of booleans, integers and floats. Nothing
else is accepted: no pickle, no object or structured dtypes (numpy would take their bytes for pointers), no extension types.
Every size is checked before memory is taken for the value: a dtype is looked up in a table of plain numbers, and a .npy
header is matched against the one form that `np.save` writes. Imports numpy and msgpack only, so that light clients can use it.
"""

from __future__ import annotations

import math
import re
import reprlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

CODECS = ("openpi", "openpi-str", "msgpack-numpy", "gr00t")

DTYPES: dict[str, np.dtype[Any]] = {
    code: np.dtype(code) for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}
"""Type codes without byte order. Kinds b, i, u and f of at most 8 bytes: what every machine reads the same way."""

_NAMES = {dtype.name: dtype for dtype in DTYPES.values()}
_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[a-z]\d)', 'fortran_order': (True|False), 'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19},?)?)\), \} *\n"
)


class DecodeError(ValueError):
    """The bytes are no acceptable message; the text names the key, what was expected and what came."""


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


class ArrayError(ValueError):
    """Bytes, dtype and shape make no acceptable array; the text names the part, what was expected and what came."""


class _Shown(reprlib.Repr):
    """`repr` of values from outside, cut before they are written out, since messages may hold megabytes."""

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[: self.maxstring])

    def repr_ndarray(self, value: np.ndarray, level: int) -> str:
        return f"an array of shape {value.shape}"


_SHOWN = _Shown()
_SHOWN.maxstring = _SHOWN.maxlong = _SHOWN.maxother = 60


def shown(value: Any, limit: int = 80) -> str:
    """A value from outside as text for an error: at most `limit` characters."""
    text = _SHOWN.repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


# ---------------------------------------------------------------------- the bytes of one array


def parse_dtype(text: Any) -> np.dtype[Any]:
    """A dtype of the whitelist, by code (`<f4`, `|u1`) or name (`float32`).

    Raises:
        ArrayError: Any other dtype.
    """
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    if isinstance(text, str):
        order, code = (text[0], text[1:]) if text[:1] in ("<", ">", "|", "=") else ("=", text)
        if code in DTYPES:
            return DTYPES[code] if order in "|=" else np.dtype(order + code)
        if text in _NAMES:
            return _NAMES[text]
    raise ArrayError(
        f"dtype: expected bool, int, uint or float of up to 8 bytes (such as '<f4'), got {shown(text)}; send "
        "float32 numbers and uint8 images"
    )


def array_from_buffer(data: Any, dtype: Any, shape: Any, max_bytes: int, max_dims: int) -> np.ndarray:
    """A read-only array in native byte order.

    Args:
        data: bytes in C order.
        dtype: Text, see `parse_dtype`.
        shape: List of non-negative integers.
        max_bytes: Largest array accepted.
        max_dims: Most dimensions accepted.

    Raises:
        ArrayError: If bytes, dtype and shape do not belong together, or exceed the limits.
    """
    kind = parse_dtype(dtype)
    if not isinstance(shape, list | tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ArrayError(f"shape: expected a list of non-negative integers, got {shown(shape)}")
    if len(shape) > max_dims:
        raise ArrayError(f"shape: expected at most {max_dims} dimensions, got {len(shape)}")
    return _checked_array(data, kind, tuple(shape), max_bytes, "C")


def _checked_array(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], max_bytes: int, order: Any) -> np.ndarray:
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ArrayError(f"data: expected bytes, got {type(data).__name__}")
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > max_bytes:
        raise ArrayError(
            f"shape: expected an array of at most {max_bytes} bytes, got shape {list(shape)} of {dtype.name}"
        )
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise ArrayError(
            f"data: expected {expected} bytes for shape {list(shape)} of {dtype.name}, got {len(data)} bytes"
        )
    flat = np.frombuffer(data, dtype=dtype) if expected else np.empty(0, dtype)
    if dtype.kind == "b" and flat.view(np.uint8).max(initial=0) > 1:
        raise ArrayError("data: expected bytes 0 and 1 in a bool array, got others")
    if not dtype.isnative:
        flat = flat.astype(dtype.newbyteorder("="))
    array = flat.reshape(shape, order=order)
    array.flags.writeable = False
    return array


def scalar_of(value: Any, dtype: Any) -> np.generic:
    """A numpy scalar from a plain number.

    Raises:
        ArrayError: If the value is no number, is of another kind than the dtype, or is out of the dtype's range.
    """
    kind = parse_dtype(dtype)
    allowed: Any = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}[kind.kind]
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind.kind != "b"):
        raise ArrayError(f"data: expected a number for {kind.name}, got {type(value).__name__}")
    if kind.kind in "iu" and not np.iinfo(kind.str).min <= value <= np.iinfo(kind.str).max:
        raise ArrayError(f"data: expected a number within the range of {kind.name}, got {value}")
    with np.errstate(over="ignore"):
        scalar: np.generic = kind.newbyteorder("=").type(value)
        return scalar


def array_from_npy(data: Any, max_bytes: int, max_dims: int) -> np.ndarray:
    """An array from the bytes that `np.save` writes. The header is matched against one form, never evaluated.

    Raises:
        ArrayError: If the bytes are no .npy file, or the array is not acceptable.
    """
    if not isinstance(data, bytes):
        raise ArrayError(f"as_npy: expected the bytes of a .npy file, got {type(data).__name__}")
    if data[:6] != _NPY_MAGIC or len(data) < 12 or data[6] not in (1, 2, 3):
        raise ArrayError("as_npy: expected the bytes of a .npy file of version 1 to 3, got others")
    width = 2 if data[6] == 1 else 4
    length = struct.unpack("<H" if width == 2 else "<I", data[8 : 8 + width])[0]
    start = 8 + width + length
    header = _NPY_HEADER.fullmatch(data, 8 + width, min(start, len(data))) if length <= 1024 else None
    if header is None:
        raise ArrayError("as_npy: expected a .npy header of plain numbers as np.save writes it, got another one")
    descr, fortran, sizes = header.groups()
    shape = tuple(int(size) for size in sizes.replace(b",", b" ").split())
    if len(shape) > max_dims:
        raise ArrayError(f"as_npy: expected at most {max_dims} dimensions, got {len(shape)}")
    order = "F" if fortran == b"True" else "C"
    return _checked_array(memoryview(data)[start:], parse_dtype(descr), shape, max_bytes, order)


def npy_bytes(array: np.ndarray) -> bytes:
    """What `np.save` writes for `array`, version 1.0, C order."""
    size = "".join(f"{length}, " for length in array.shape[:-1]) + (f"{array.shape[-1]}" if array.ndim else "")
    shape = f"({size},)" if array.ndim == 1 else f"({size})"
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    padding = -(10 + len(header) + 1) % 64
    encoded = header.encode("ascii") + b" " * padding + b"\n"
    return _NPY_MAGIC + b"\x01\x00" + struct.pack("<H", len(encoded)) + encoded + array.tobytes()


# ---------------------------------------------------------------------- arrays in a decoded message


class MessageReader:
    """Turns decoded msgpack into plain values and arrays.

    Args:
        limits: What is accepted.

    Attributes:
        codec: Of the first array that was met; None before.
    """

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
    packed: bytes = msgpack.packb(obj, default=_ENCODERS[codec], use_bin_type=True)
    return packed


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
    reader = MessageReader(limits)
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
