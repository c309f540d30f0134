"""Safetensors checkpoints read and written piece by piece, in less memory than one of their tensors takes.

A source tensor is known by its header entry alone until its bytes pass, 16 MiB at a time, from the source file to the
output file. Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PIECE_BYTES = 16 * 2**20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TensorSource(Protocol):
    """A tensor that can be had piece by piece."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def pieces(self) -> Iterator[torch.Tensor]:
        """Its elements in order as flat CPU tensors, each valid until the next one is asked for."""
        ...

    def read(self) -> torch.Tensor:
        """The whole tensor; may share memory with whoever holds it."""
        ...


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a safetensors file: `nbytes` bytes from `offset` on."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def pieces(self) -> Iterator[torch.Tensor]:
        left = math.prod(self.shape) * self.dtype.itemsize
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.offset)
            while left:
                buffer = bytearray(min(left, _PIECE_BYTES))
                if _fill(stream, buffer) != len(buffer):
                    raise ValueError(f"{self.file}: ends before its last tensor; download it again")
                left -= len(buffer)
                yield torch.frombuffer(buffer, dtype=self.dtype)

    def read(self) -> torch.Tensor:
        out = torch.empty(self.shape, dtype=self.dtype)
        flat, start = out.view(-1), 0
        for piece in self.pieces():
            flat[start : start + len(piece)] = piece
            start += len(piece)
        return out


@dataclass(frozen=True)
class MemoryTensor:
    """A tensor of a model that is in memory."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def pieces(self) -> Iterator[torch.Tensor]:
        if self.tensor.numel():
            yield from self.tensor.detach().flatten().split(max(1, _PIECE_BYTES // self.dtype.itemsize))

    def read(self) -> torch.Tensor:
        return self.tensor.detach()


def nbytes(source: TensorSource, dtype: torch.dtype | None = None) -> int:
    return math.prod(source.shape) * stored_dtype(source, dtype).itemsize


def stored_dtype(source: TensorSource, dtype: torch.dtype | None) -> torch.dtype:
    """Dtype of `source` in a checkpoint written with `dtype`: numbers that are not floating keep theirs."""
    return dtype if dtype is not None and source.dtype.is_floating_point else source.dtype


def equal(a: TensorSource, b: TensorSource) -> bool:
    """Bit for bit, without holding either."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return all(torch.equal(_bytes(x), _bytes(y)) for x, y in zip(a.pieces(), b.pieces(), strict=True))


# ---------------------------------------------------------------------- reading


def read_checkpoint(folder: Path) -> dict[str, TensorSource]:
    """Tensors of a checkpoint folder by name, from the headers of `model.safetensors` or of the shards in its index.

    Raises:
        ValueError: If there is no safetensors checkpoint, a shard is missing, a file is damaged or cut, or a dtype is unknown.
    """
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise ValueError(_no_weights(folder))
        return _read_header(folder / WEIGHTS)
    weight_map = _json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{folder / INDEX}: expected a `weight_map` from tensor names to files; download it again")
    files = sorted(set(weight_map.values()))
    bad = [f for f in files if not isinstance(f, str) or Path(f).name != f or not f.endswith(".safetensors")]
    if bad:
        raise ValueError(f"{folder / INDEX}: expected names of safetensors files in this folder, got {bad[:3]}")
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{folder}: the index names files that are not there: {listed(absent)}; download them")
    headers = {name: _read_header(folder / name) for name in files}
    lost = [name for name, file in weight_map.items() if name not in headers[file]]
    if lost:
        raise ValueError(f"{folder}: the index names tensors that their files lack: {listed(lost)}")
    return {name: headers[file][name] for name, file in weight_map.items()}


def _read_header(path: Path) -> dict[str, TensorSource]:
    """Name, place, shape and dtype of every tensor of one file."""
    try:
        with safe_open(path, framework="pt"):  # refuses overlaps, wrong sizes and cut files
            pass
    except (SafetensorError, OSError) as error:
        with path.open("rb") as stream:
            if stream.read(64).startswith(b"version https://git-lfs"):
                raise ValueError(f"{path}: a Git LFS pointer; run `git lfs pull` in {path.parent}") from error
        raise ValueError(f"{path}: not a whole safetensors file ({error}); download it again") from error
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    tensors: dict[str, TensorSource] = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name}: expected one of {', '.join(_DTYPES)}, got dtype {entry['dtype']}")
        offset = 8 + length + entry["data_offsets"][0]
        tensors[name] = FileTensor(path, offset, tuple(entry["shape"]), _DTYPES[entry["dtype"]])
    return tensors


def _no_weights(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if "adapter_config.json" in names:
        return f"{folder}: holds a PEFT adapter, not a whole model; merge it into its base model first"
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        return (
            f"{folder}: expected {WEIGHTS} or {INDEX}, got only pickled weights ({listed(pickles)}), which can run code "
            "when they are loaded. Take a safetensors version (on the Hub, often revision 'refs/pr/...' or a newer one), "
            "or convert where you trust the file: AutoModel.from_pretrained(folder).save_pretrained(other_folder)"
        )
    return f"{folder}: expected {WEIGHTS} or {INDEX}, got {listed(names) if names else 'an empty folder'}"


def _fill(stream: Any, buffer: bytearray) -> int:
    view, got = memoryview(buffer), 0
    while got < len(buffer) and (count := stream.readinto(view[got:])):
        got += count
    return got


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); download it again") from error


# ---------------------------------------------------------------------- writing


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, TensorSource],
    max_shard_size: int | str = "5GB",
    dtype: torch.dtype | None = None,
) -> None:
    """Write `model.safetensors`, or shards of at most `max_shard_size` with their index, as `save_pretrained` names them.

    Args:
        folder: Where to write; exists.
        tensors: What to write, in the order in which it is spread over the shards.
        max_shard_size: Bytes, or a string such as "5GB"; a larger tensor gets a shard of its own.
        dtype: Dtype of floating-point tensors; None keeps each one's own.

    Raises:
        ValueError: If a number does not fit into `dtype`.
    """
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda source: nbytes(source, dtype),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    total = split.metadata["total_size"]
    with logging.tqdm(total=total, unit="B", unit_scale=True, desc="Writing weights", leave=False) as progress:
        for file, names in split.filename_to_tensors.items():
            _write_file(folder / file, {name: tensors[name] for name in names}, dtype, progress)
    if split.is_sharded:
        parameters = sum(math.prod(source.shape) for source in tensors.values())
        index = {
            "metadata": {"total_parameters": parameters, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_file(path: Path, tensors: Mapping[str, TensorSource], dtype: torch.dtype | None, progress: Any) -> None:
    # Widest numbers first, so that every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-stored_dtype(tensors[name], dtype).itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + nbytes(tensors[name], dtype)
        stored = _DTYPE_NAMES[stored_dtype(tensors[name], dtype)]
        header[name] = {"dtype": stored, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in order:
            source = tensors[name]
            for piece in source.pieces():
                progress.update(stream.write(_bytes(cast(piece, stored_dtype(source, dtype), name)).numpy().data))
        stream.flush()
        os.fsync(stream.fileno())
        if stream.tell() != 8 + len(encoded) + end:
            raise RuntimeError(f"{path}: wrote {stream.tell()} bytes, planned {8 + len(encoded) + end}")


def cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """`tensor.to(dtype)`, but a finite number that overflows is an error."""
    out = tensor.to(dtype)
    if out.dtype != tensor.dtype and tensor.dtype.itemsize > 1 and not torch.equal(out.isfinite(), tensor.isfinite()):
        raise ValueError(f"{name}: holds numbers too large for {dtype}; use bfloat16 or float32")
    return out


def _bytes(flat: torch.Tensor) -> torch.Tensor:
    return flat.cpu().contiguous().view(torch.uint8)


def listed(names: list[str]) -> str:
    """The first ten of `names`, and how many there are when there are more."""
    return ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")
