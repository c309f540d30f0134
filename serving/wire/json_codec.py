"""Observations in JSON, for programs that have no msgpack: `POST /v1/act` with `application/json`.

A number array is a (nested) list, or `{"data": BASE64, "dtype": "<f4", "shape": [14]}` with its bytes in C order; an image
is such an array of `|u1` or `{"jpeg": BASE64}` or `{"png": BASE64}`: written out as lists it would have more entries than
`CodecLimits` lets pass. In answers, arrays are lists.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

import numpy as np

from .msgpack_codec import DEFAULT_LIMITS, ArrayError, CodecLimits, DecodeError, array_from_buffer, shown

_FILES = ("jpeg", "png")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ARRAY = {"data", "dtype", "shape"}


def decode_json(body: bytes, limits: CodecLimits = DEFAULT_LIMITS) -> Any:
    """A JSON request as maps, lists, numbers, texts, arrays, and bytes for encoded images.

    Raises:
        DecodeError: The body is no JSON, or exceeds the limits; names the key.
    """
    if len(body) > limits.max_message_bytes:
        raise DecodeError(f"message: expected at most {limits.max_message_bytes} bytes, got {len(body)}")
    if body.count(b",") + body.count(b"[") + body.count(b"{") > limits.max_elements:  # before any object is made
        raise DecodeError(f"message: expected at most {limits.max_elements} map and list entries, got more")
    try:
        value = json.loads(body, object_pairs_hook=_once)
    except DecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"message: expected JSON in UTF-8, got {len(body)} other bytes ({error})") from None
    return _read(value, "", 0, limits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A map with distinct keys and whole characters: `json` itself accepts equal keys, and halves of characters."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise DecodeError(f"message: expected every key once, got {shown([key for key, _ in pairs])}")
    for name, value in pairs:
        for text in (name, value):
            if isinstance(text, str) and not text.isascii() and _LONE_SURROGATE.search(text):
                raise DecodeError(f"message: expected whole Unicode characters, got {shown(text)}")
    return result


def encode_json(value: Any) -> bytes:
    """A reply as JSON; arrays become lists, which must be finite."""
    return json.dumps(value, allow_nan=False, default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"reply: expected plain values and arrays, got {type(value).__name__}")


def _read(value: Any, path: str, depth: int, limits: CodecLimits) -> Any:
    if depth > limits.max_depth:
        raise DecodeError(f"{path}: expected at most {limits.max_depth} levels of maps and lists, got more")
    if isinstance(value, list):
        return _numbers([_read(entry, f"{path}[{i}]", depth + 1, limits) for i, entry in enumerate(value)])
    if not isinstance(value, dict):
        return value
    if set(value) == _ARRAY:
        try:
            data = _bytes(value["data"], f"{path}.data")
            return array_from_buffer(
                data, value["dtype"], value["shape"], limits.max_array_bytes, limits.max_array_dims
            )
        except ArrayError as error:
            raise DecodeError(f"{path or 'message'}: {error}") from None
    if len(value) == 1 and next(iter(value)) in _FILES:
        kind, text = next(iter(value.items()))
        return _bytes(text, f"{path}.{kind}")
    return {key: _read(entry, f"{path}.{key}" if path else key, depth + 1, limits) for key, entry in value.items()}


def _numbers(entries: list[Any]) -> Any:
    """A list of numbers, or of arrays of one shape, as an array, so that states and chunks may be written out as lists."""
    if entries and all(isinstance(entry, np.ndarray) for entry in entries):
        same = len({entry.shape for entry in entries}) == 1
        return np.stack(entries) if same else entries
    if entries and all(isinstance(entry, int | float) and not isinstance(entry, bool) for entry in entries):
        try:
            return np.array(entries, dtype=np.float64)
        except OverflowError:
            return entries
    return entries


def _bytes(text: Any, path: str) -> bytes:
    if not isinstance(text, str):
        raise DecodeError(f"{path}: expected base64 text, got {type(text).__name__}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DecodeError(f"{path}: expected base64 text, got other characters ({error})") from None
