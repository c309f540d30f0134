"""Reads `.npy` files that hold a pickled object, and admits arrays, dictionaries, lists, tuples, texts and numbers alone.

A pickle is a program: it may call whatever it names. Here it may name numpy's rebuilding functions only, and gets objects
of this module in their place, so that not even numpy's own code runs on what a file says. Arrays are made from their bytes
when they are asked for.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from .source import SourceError

MAX_BYTES = 2**30
_DTYPE = re.compile(r"[<>|=]?[fiub?](1|2|4|8)?|[<>|=]?[SU]\d{1,5}")


class PickledDtype:
    """Stand-in of `numpy.dtype`: its name and byte order."""

    def __init__(self, name: Any = "", align: Any = False, copy: Any = True):
        self.name = name
        self.order: Any = "="

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        if not isinstance(self.name, str) or not _DTYPE.fullmatch(self.name):
            raise SourceError(f"an array of {self.name!r:.60}, expected numbers or texts")
        return np.dtype(self.name).newbyteorder("=" if self.order == "|" else self.order)


class PickledArray:
    """Stand-in of an array: shape, type and bytes, checked against each other when the array is made."""

    def __init__(self, *arguments: Any):
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def array(self) -> np.ndarray:
        """The array; SourceError if its bytes do not fit."""
        try:
            _, shape, dtype, fortran, data = self._state
            return _array(data, dtype, shape, "F" if fortran else "C")
        except (TypeError, ValueError) as error:
            raise SourceError(f"an array that is none ({error})") from error


def _array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, PickledDtype) or not isinstance(data, bytes | bytearray):
        raise SourceError("an array of objects, expected numbers or texts")
    kind = dtype.dtype()
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise SourceError(f"an array of shape {shape!r:.60}")
    size = 1
    for n in shape:
        size *= n
    if size * kind.itemsize != len(data):
        raise SourceError(f"an array of shape {shape} with {len(data)} bytes, expected {size * kind.itemsize}")
    return np.frombuffer(data, kind).reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    made = PickledArray()
    made.__setstate__(
        (1, shape, dtype, order == "F", bytes(data) if isinstance(data, bytearray | memoryview) else data)
    )
    return made


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _array(data, dtype, (1,), "C")[0].item()


_ADMITTED = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): PickledArray for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledDtype,
}


class RestrictedUnpickler(pickle.Unpickler):
    """Finds the admitted names alone."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of an admitted name; SourceError for every other."""
        found = _ADMITTED.get((module, name))
        if found is None:
            raise SourceError(
                f"the pickle asks for {module}.{name}; only arrays, dicts, lists, texts and numbers are read"
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Always a SourceError."""
        raise SourceError("the pickle refers to objects outside the file")


def load_object(path: Path) -> Any:
    """The object of a `.npy` file that was saved with `np.save(path, {...})`; arrays in it are `PickledArray`.

    Raises:
        SourceError: It is no such file, damaged, too large, or asks for anything else than plain data.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SourceError(f"{path.name}: {size} bytes, expected at most {MAX_BYTES}")
    stream = io.BytesIO(path.read_bytes())
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read_header[version](stream)
        if dtype != np.dtype(object) or shape != ():
            raise SourceError(f"expected one pickled object, got an array {dtype} {shape}")
        content = RestrictedUnpickler(stream).load()
        return _only_item(content)
    except SourceError as error:
        raise SourceError(f"{path.name}: {error}") from error
    except Exception as error:  # damaged pickles raise nearly everything
        raise SourceError(f"{path.name}: no dictionary that numpy saved ({type(error).__name__}: {error})") from error


def as_array(value: Any) -> np.ndarray:
    """A vector of numbers, of an array or a list of numbers.

    Raises:
        SourceError: It is neither.
    """
    if isinstance(value, PickledArray):
        found = value.array()
    elif isinstance(value, list | tuple) and all(type(n) in (int, float) for n in value):
        found = np.array(value, np.float64)
    elif type(value) in (int, float):
        found = np.array([value], np.float64)
    else:
        raise SourceError(f"expected numbers, got {type(value).__name__}")
    if found.dtype.kind not in "fiub":
        raise SourceError(f"expected numbers, got {found.dtype}")
    return found.reshape(-1)


def _only_item(content: Any) -> Any:
    """The element of the zero-dimensional object array that numpy makes of a dictionary."""
    if not isinstance(content, PickledArray):
        return content
    state = content._state
    if not isinstance(state, tuple) or len(state) != 5 or state[1] != () or not isinstance(state[4], list):
        raise SourceError("expected one pickled object")
    return state[4][0]
