"""Feature vectors of a whole dataset on disk, in numpy's open format, with what they were made from.

A folder holds `manifest.json`, `vectors.npy` (rows, views * dim) float32, `view_mask.npy` (rows, views) bool,
`task_index.npy` (rows,) int32 and, until it is complete, `progress.json`. A row's vector is the concatenation over the
views of sqrt(weight) times the unit feature vector, zeros where the row has no such view: the inner product of two rows is
the paper's sum over views of weight times cosine. A missing view, on either side, counts as cosine 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from syvla.durable_files import write_json

FORMAT = 1
VIEW_WEIGHTS = {"center": 0.83, "left_wrist": 0.083, "right_wrist": 0.083}
"""Weights of the views (paper, appendix A)."""


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`.

    Attributes:
        dataset, encoder: Fingerprints.
        rows: Frames of all datasets, in their order.
        views: Names, in the order of the blocks of a vector.
        view_weights: Weight of each view; their square roots are in the vectors.
        dim: Features per view.
        tasks: Instructions; `task_index.npy` points into them.
        shard_rows: Rows that are encoded and marked as done together.
        format: Version of this layout.
    """

    dataset: str
    encoder: str
    rows: int
    views: list[str]
    view_weights: list[float]
    dim: int
    tasks: list[str]
    shard_rows: int = 1024
    format: int = FORMAT

    @property
    def width(self) -> int:
        return len(self.views) * self.dim

    @property
    def shards(self) -> list[tuple[int, int]]:
        """Ranges of rows."""
        return [(low, min(low + self.shard_rows, self.rows)) for low in range(0, self.rows, self.shard_rows)]


class EmbeddingStore:
    """An existing folder of vectors, memory-mapped.

    Args:
        folder: The folder.

    Raises:
        ValueError: If the folder is no embedding store, or one of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)

    @classmethod
    def create(cls, folder: str | Path, manifest: Manifest, task_index: np.ndarray) -> EmbeddingStore:
        """A new folder with all rows to do, or the one that an interrupted run left with the same manifest.

        Raises:
            ValueError: If the folder holds vectors of something else.
        """
        folder = Path(folder)
        if (folder / "manifest.json").is_file():
            store = cls(folder)
            store.require(manifest.dataset, manifest.encoder)
            if store.manifest != manifest:
                raise ValueError(f"{folder}: was made with other view weights or shards; encode into another folder")
            return store
        folder.mkdir(parents=True, exist_ok=True)
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "vectors": ((manifest.rows, manifest.width), np.float32),
            "view_mask": ((manifest.rows, len(manifest.views)), np.bool_),
        }
        for name, (shape, dtype) in shapes.items():
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype=dtype, shape=shape).flush()
        np.save(folder / "task_index.npy", task_index.astype(np.int32))
        write_json(folder / "progress.json", [])
        write_json(folder / "manifest.json", asdict(manifest))  # last: the folder is whole from here on
        return cls(folder)

    def array(self, name: str, mode: Any = "r") -> np.ndarray:
        """`vectors`, `view_mask` or `task_index`, memory-mapped."""
        stored: np.ndarray = np.load(self.folder / f"{name}.npy", mmap_mode=mode, allow_pickle=False)
        return stored

    def missing_shards(self) -> list[int]:
        """Numbers of the shards that are not encoded yet."""
        path = self.folder / "progress.json"
        if not path.is_file():
            return []
        done = set(json.loads(path.read_text(encoding="utf-8")))
        return [number for number in range(len(self.manifest.shards)) if number not in done]

    def write_shard(self, number: int, vectors: np.ndarray, view_mask: np.ndarray) -> None:
        """Put a shard's rows on disk; it counts once `mark_done` says so."""
        low, high = self.manifest.shards[number]
        for name, values in (("vectors", vectors), ("view_mask", view_mask)):
            array = self.array(name, "r+")
            array[low:high] = values
            array.flush()  # type: ignore[attr-defined]

    def mark_done(self, number: int) -> None:
        """Remember a shard as encoded; with the last one the store is complete."""
        missing = [n for n in self.missing_shards() if n != number]
        path = self.folder / "progress.json"
        if missing:
            done = sorted(set(range(len(self.manifest.shards))) - set(missing))
            write_json(path, done)
        else:
            path.unlink(missing_ok=True)

    def require(self, dataset: str, encoder: str) -> None:
        """Raises ValueError unless the vectors were made from this dataset by this encoder."""
        for name, wanted, found in (
            ("dataset", dataset, self.manifest.dataset),
            ("encoder", encoder, self.manifest.encoder),
        ):
            if wanted != found:
                raise ValueError(
                    f"{self.folder}: was made from another {name} (fingerprint {found}, expected {wanted}); encode again into "
                    f"another folder (syvla-encode --output ...), or use the {name} it was made from"
                )

    def require_complete(self) -> None:
        if missing := self.missing_shards():
            raise ValueError(
                f"{self.folder}: {len(missing)} of {len(self.manifest.shards)} parts are not encoded yet; run syvla-encode "
                "again with the same options, it goes on where it stopped"
            )


def read_manifest(folder: Path) -> Manifest:
    """`manifest.json`, checked against the files beside it.

    Raises:
        ValueError: If it is missing, of another format, or the arrays have other shapes.
    """
    path = folder / "manifest.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("format") != FORMAT:
            raise ValueError(f"format {raw.get('format')}, this code reads {FORMAT}; encode again")
        manifest = Manifest(**raw)
        shapes = {
            "vectors": (manifest.rows, manifest.width),
            "view_mask": (manifest.rows, len(manifest.views)),
            "task_index": (manifest.rows,),
        }
        for name, shape in shapes.items():
            found = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).shape
            if found != shape:
                raise ValueError(f"{name}.npy has shape {found}, expected {shape}; encode again")
    except (OSError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{folder}: no usable store of feature vectors ({error}); make one with syvla-encode"
        ) from error
    return manifest


def weighted_vectors(features: np.ndarray, mask: np.ndarray, factors: Sequence[float] | np.ndarray) -> np.ndarray:
    """Unit vectors per view times a factor, concatenated; zeros where the mask is False.

    Args:
        features: (n, V, dim).
        mask: bool (n, V).
        factors: (V,).

    Returns:
        float32 (n, V * dim).

    Raises:
        ValueError: If a feature vector is zero or not finite.
    """
    norms = np.linalg.norm(features, axis=-1)
    if not (np.isfinite(norms) & (norms > 0))[mask].all():
        raise ValueError("features: the encoder returned a vector of zeros, NaN or infinity; are its weights intact?")
    scale = np.where(mask, np.asarray(factors) / np.where(mask, norms, 1.0), 0.0)
    weighted = np.where(mask[..., None], features, 0.0) * scale[..., None]
    return np.ascontiguousarray(weighted.reshape(len(features), -1), dtype=np.float32)


def checked_weights(weights: Mapping[str, float], views: Sequence[str]) -> list[float]:
    """One weight per view; ValueError where one is missing, negative or not finite."""
    missing = [view for view in views if view not in weights]
    wrong = {view: w for view, w in weights.items() if not (np.isfinite(w) and w >= 0)}
    if missing or wrong or not any(weights[view] > 0 for view in views):
        raise ValueError(
            f"view_weights: expected a number of at least 0 for each of {list(views)}, one of them above 0, got {dict(weights)}"
        )
    return [float(weights[view]) for view in views]


def dataset_fingerprint(datasets: Sequence[Any]) -> str:
    """Digest of the frames of datasets: what is selected, every state and action, names and sizes of the image files.

    It does not depend on where a dataset lies.
    """
    digest = hashlib.sha256()
    for dataset in datasets:
        facts = {
            "fps": dataset.fps,
            "episodes": dataset.episodes,
            "lengths": dataset.episode_lengths.tolist(),
            "cameras": dict(dataset.cameras),
            "embodiment": dataset.embodiment,
            "tasks": dataset.tasks,
        }
        digest.update(json.dumps(facts, sort_keys=True).encode())
        for values in (dataset.states, dataset.actions):
            digest.update(np.ascontiguousarray(values).data)
        for path in sorted(p for kind in ("data", "videos", "images") for p in (dataset.root / kind).rglob("*.*")):
            digest.update(f"{path.relative_to(dataset.root).as_posix()} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]
