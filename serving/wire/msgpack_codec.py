"""Numpy arrays in msgpack, in the codecs that robot clients use; safe to decode from anyone.

| name | array | who |
|---|---|---|
| `openpi` | `{b"__ndarray__": True, b"data", b"dtype", b"shape"}`, scalars `__npgeneric__` | openpi-client |
| `openpi-str` | the same with text keys | vla-eval |
| `msgpack-numpy` | `{b"nd": True, b"type", b"kind", b"shape", b"data"}`, scalars `nd: False` | PyPI msgpack-numpy, GR00T N1.7 |
| `gr00t` | `{"__ndarray_class__": True, "as_npy": .npy bytes}` | GR00T N1.5 and N1.6 |

Bytes from outside become numbers, texts, lists, maps with text keys, or arrays of booleans, integers and floats. Nothing
else is accepted: no pickle, no object or structured dtypes (numpy would take their bytes for pointers), no extension types.
Every size is checked before memory is taken for the value. Imports numpy and msgpack only, so that light clients can use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from .array_bytes import DEFAULT_LIMITS, DTYPES, CodecLimits, DecodeError, MessageReader, npy_bytes, shown

CODECS = ("openpi", "openpi-str", "msgpack-numpy", "gr00t")


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
