"""Reading foreign HDF5 files: nothing outside the file is opened, and sizes are checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .images import MAX_ENCODED_BYTES, check_shape, decode_image
from .source import MAX_FRAMES, MAX_VECTOR_BYTES, CameraFrames, SourceError

_BLOCK_BYTES = 32 * 2**20  # of frames that are read at once
_MAX_CHUNK_BYTES = 2**28  # of one compressed chunk, unpacked
_MAX_OBJECTS = 10_000  # groups and datasets of one episode
_MAX_TEXT_BYTES = 2**20


def open_hdf5(path: Path) -> Any:
    """An `h5py.File` for reading.

    Raises:
        ImportError: h5py is not installed.
        SourceError: It is no HDF5 file, or cut off.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("reading HDF5 needs h5py: pip install 'syvla[convert]'") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise SourceError(f"no HDF5 file, or cut off ({error})") from error


def group_at(file: Any, path: str) -> Any:
    """A group of a file, by names that are no links to another place or file.

    Raises:
        SourceError: There is no such group, or a link stands in its place.
    """
    import h5py

    here = file
    for name in path.split("/"):
        if name not in here or not isinstance(here.get(name, getlink=True), h5py.HardLink):
            raise SourceError(f"no group {path}, or a link to another place or file; it has {list(here)[:10]}")
        here = here[name]
        if not isinstance(here, h5py.Group):
            raise SourceError(f"{path}: expected a group, got {type(here).__name__}")
    return here


def shapes_below(path: Path, part: str = "") -> dict[str, tuple[int, ...]]:
    """Shape of every dataset of a file, or of a group of it; empty where it cannot be read."""
    try:
        with open_hdf5(path) as file:
            found = datasets_below(group_at(file, part) if part else file)
            return {name: tuple(dataset.shape) for name, dataset in found.items()}
    except ImportError:
        raise
    except Exception:  # whatever a damaged file makes h5py raise; reading the episode says what it is
        return {}


def datasets_below(group: Any) -> dict[str, Any]:
    """Every dataset of a group by its path below it, in alphabetical order.

    Raises:
        SourceError: A link leads out of the file, or there are too many objects.
    """
    import h5py

    found: dict[str, Any] = {}
    waiting = [("", group)]
    seen = 0
    while waiting:
        prefix, here = waiting.pop()
        for name in here:
            seen += 1
            if seen > _MAX_OBJECTS:
                raise SourceError(f"more than {_MAX_OBJECTS} objects in one episode")
            path = f"{prefix}{name}"
            if not isinstance(here.get(name, getlink=True), h5py.HardLink):
                raise SourceError(f"{path}: a link to another place or file; copy the data into the file (h5repack)")
            entry = here[name]
            if isinstance(entry, h5py.Group):
                waiting.append((f"{path}/", entry))
            elif isinstance(entry, h5py.Dataset):
                found[path] = _checked(path, entry)
    return dict(sorted(found.items()))


def _checked(path: str, dataset: Any) -> Any:
    if dataset.external or dataset.is_virtual:
        raise SourceError(f"{path}: its data lies in another file; copy it into this one (h5repack)")
    chunk = int(np.prod([float(n) for n in dataset.chunks])) * dataset.dtype.itemsize if dataset.chunks else 0
    if chunk > _MAX_CHUNK_BYTES:
        raise SourceError(f"{path}: chunks of {chunk} bytes, expected at most {_MAX_CHUNK_BYTES}")
    return dataset


def is_vector(dataset: Any) -> bool:
    """Whether a dataset holds numbers per frame, (n,) or (n, D)."""
    return dataset.dtype.kind in "fiub" and dataset.ndim in (1, 2) and not is_encoded(dataset)


def is_encoded(dataset: Any) -> bool:
    """Whether a dataset may hold encoded pictures: bytes of their own length, or rows padded to one length."""
    import h5py

    varying = h5py.check_vlen_dtype(dataset.dtype)
    if dataset.ndim == 1:
        return bool(dataset.dtype.kind in "SV" or varying == np.dtype("uint8") or varying is bytes)
    return bool(dataset.ndim == 2 and dataset.dtype == np.uint8 and dataset.shape[1] > 256)


def is_frames(dataset: Any) -> bool:
    """Whether a dataset holds raw frames, uint8 (n, H, W, 3)."""
    return bool(dataset.ndim == 4 and dataset.dtype == np.uint8 and dataset.shape[3] == 3)


def read_vector(path: str, dataset: Any) -> np.ndarray:
    """Numbers (n, D) of a dataset; a dataset (n,) becomes (n, 1)."""
    size = float(np.prod([float(n) for n in dataset.shape])) * dataset.dtype.itemsize
    if size > MAX_VECTOR_BYTES or dataset.shape[0] > MAX_FRAMES:
        raise SourceError(f"{path}: {dataset.shape} values, {size:.3g} bytes, expected at most {MAX_VECTOR_BYTES}")
    values = np.asarray(dataset[()])
    return values[:, None] if values.ndim == 1 else values


def camera_frames(path: str, dataset: Any, lengths: Any = None) -> CameraFrames:
    """Frames of a raw or an encoded camera.

    Args:
        path: For messages.
        dataset: See `is_frames` and `is_encoded`.
        lengths: int (cameras, n), `compress_len` of the file, or None. Which row is whose the file does not say.

    Raises:
        SourceError: Frames of an impossible size.
    """
    if is_frames(dataset):
        check_shape(tuple(dataset.shape[1:]))
        return CameraFrames(len(dataset), lambda: _raw(dataset))
    return CameraFrames(len(dataset), lambda: _encoded(path, dataset, lengths))


def _raw(dataset: Any) -> Iterator[np.ndarray]:
    frame = int(np.prod(dataset.shape[1:]))
    rows = max(_BLOCK_BYTES // frame, 1)
    if dataset.chunks:  # whole chunks, so that none is unpacked twice
        rows = max(rows // dataset.chunks[0], 1) * dataset.chunks[0]
    for start in range(0, len(dataset), rows):
        yield from np.asarray(dataset[start : start + rows])


def _encoded(path: str, dataset: Any, lengths: Any) -> Iterator[np.ndarray]:
    if dataset.dtype.itemsize * (dataset.shape[1] if dataset.ndim == 2 else 1) > MAX_ENCODED_BYTES:
        raise SourceError(f"{path}: pictures of {dataset.dtype.itemsize} bytes, expected at most {MAX_ENCODED_BYTES}")
    for index in range(len(dataset)):
        entry = dataset[index]
        data = entry.tobytes() if isinstance(entry, np.ndarray | np.void) else bytes(entry)
        size = len(data.rstrip(b"\0"))
        if lengths is not None and index < lengths.shape[1] and size not in lengths[:, index]:
            raise SourceError(
                f"{path}: frame {index} holds {size} bytes, compress_len says {lengths[:, index].tolist()}; it is damaged"
            )
        try:
            yield decode_image(data)
        except SourceError as error:
            raise SourceError(f"{path}: frame {index}: {error}") from error


def text_of(value: Any) -> str | None:
    """Text of a dataset or an attribute that holds one; None otherwise."""
    if hasattr(value, "dtype") and hasattr(value, "shape") and hasattr(value, "id"):
        if int(np.prod(value.shape)) != 1 or value.dtype.kind not in "OSU" or value.dtype.itemsize > _MAX_TEXT_BYTES:
            return None
        value = value[()]
    value = np.asarray(value).reshape(-1)
    if len(value) != 1:
        return None
    entry = value[0]
    if isinstance(entry, bytes):
        entry = entry.decode("utf-8", errors="replace")
    return str(entry)[:_MAX_TEXT_BYTES] if isinstance(entry, str) else None
