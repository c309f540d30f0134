"""Similar samples of the imitation dataset for the observations of a rollout (paper, section 3.3 and appendix A).

    sim(x, y) = sum over views of weight * cosine(E(x), E(y))

is one inner product of concatenated, weighted vectors, so the search is a single exact maximum-inner-product search, here
with FAISS over blocks of the memory-mapped file: no copy of the dataset's vectors is held.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .embedding_store import EmbeddingStore, checked_weights, dataset_fingerprint
from .encode_dataset import encode_views
from .image_encoders import ImageEncoder

logger = logging.getLogger(__name__)

BLOCK_ROWS = 65_536
"""Rows per product: 400 MB of a file with three views of 512 features. Ours."""

BLAS_QUERIES = 20
"""Queries from which on the similarities are one matrix product; FAISS's documented default."""


@dataclass(frozen=True)
class Neighbors:
    """Best rows of each query, best first.

    Attributes:
        rows: int64 (queries, k), numbers of frames in the datasets' order; -1 where fewer than k exist.
        similarities: float32 (queries, k); -inf where the row is -1.
    """

    rows: np.ndarray
    similarities: np.ndarray


class SimilarSampleIndex:
    """Exact search in a complete store of vectors.

    Args:
        folder: Folder of the store.
        encoder: Encoder of the queries; the one that made the store.
        datasets: Datasets that the rows belong to; None: not compared.
        view_weights: Weight of each view; None: those of the store. Others need no new vectors.
        allowed: bool (rows,), False for rows that are never found; None: all may be.

    Raises:
        ValueError: If the store is unfinished, or was made from another dataset or by another encoder.
        ImportError: If FAISS is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        encoder: ImageEncoder,
        datasets: Sequence[Any] | None = None,
        view_weights: Mapping[str, float] | None = None,
        allowed: np.ndarray | None = None,
    ) -> None:
        self._faiss = import_faiss()
        self.encoder = encoder
        self.store = EmbeddingStore(folder)
        manifest = self.manifest = self.store.manifest
        self.store.require(
            manifest.dataset if datasets is None else dataset_fingerprint(datasets), encoder.fingerprint()
        )
        self.store.require_complete()
        self.vectors = self.store.array("vectors")
        self.task_index = np.asarray(self.store.array("task_index"))
        stored = np.asarray(manifest.view_weights)
        wanted = stored if view_weights is None else np.asarray(checked_weights(view_weights, manifest.views))
        if ((stored == 0) & (wanted > 0)).any():
            raise ValueError(
                f"view_weights: {manifest.views} were stored with {stored.tolist()}; a 0 cannot be raised later"
            )
        # The vectors hold the square roots of the stored weights; the query brings what is missing to the wanted ones.
        self._factors = np.divide(wanted, np.sqrt(stored), out=np.zeros_like(stored), where=stored > 0)
        self._rescaling = np.divide(wanted, stored, out=np.zeros_like(stored), where=stored > 0)
        self.allowed = allowed
        self._rows_of_task: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.manifest.rows

    def encode(self, samples: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """Query vectors float32 (n, V * dim) of samples {view: uint8 (H, W, 3)}; a missing view counts as cosine 0."""
        return encode_views(self.encoder, samples, self.manifest.views, self._factors)[0]

    def stored_queries(self, rows: np.ndarray) -> np.ndarray:
        """What `encode` gives for the samples of rows of the store, float32 (n, V * dim)."""
        scale = np.repeat(self._rescaling, self.manifest.width // len(self._rescaling))
        queries: np.ndarray = (self.vectors[rows] * scale).astype(np.float32)
        return queries

    def search(self, queries: np.ndarray, k: int, tasks: Sequence[str] | None = None) -> Neighbors:
        """The k most similar rows of each query.

        Args:
            queries: From `encode`, (n, V * dim).
            k: How many.
            tasks: Instruction of each query: only rows with the same one count. None: all rows.

        Raises:
            ValueError: If no row has one of the instructions, so that its set of expert samples is empty.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.manifest.width or k < 1:
            raise ValueError(
                f"queries: expected (n, {self.manifest.width}) and k of at least 1, got {queries.shape}, {k=}"
            )
        if tasks is None:
            return self.search_rows(queries, k, None if self.allowed is None else np.flatnonzero(self.allowed))
        if len(tasks) != len(queries):
            raise ValueError(f"tasks: expected one for each of the {len(queries)} queries, got {len(tasks)}")
        rows = np.full((len(queries), k), -1, np.int64)
        similarities = np.full((len(queries), k), -np.inf, np.float32)
        for task in dict.fromkeys(tasks):
            chosen = np.array([other == task for other in tasks])
            found = self.search_rows(queries[chosen], k, self.rows_of(task))
            rows[chosen], similarities[chosen] = found.rows, found.similarities
        return Neighbors(rows, similarities)

    def rows_of(self, task: str) -> np.ndarray:
        """Rows with an instruction, int64, ascending.

        Raises:
            ValueError: If there are none.
        """
        number = self.manifest.tasks.index(task) if task in self.manifest.tasks else -1
        if number not in self._rows_of_task:
            own = self.task_index == number
            self._rows_of_task[number] = np.flatnonzero(own if self.allowed is None else own & self.allowed)
        rows = self._rows_of_task[number]
        if not len(rows):
            raise ValueError(
                f"retrieval: the expert data has no sample of the task {task!r}; it has {self.manifest.tasks[:10]}. Add "
                "demonstrations of it, or search all tasks (same_task=False)"
            )
        return rows

    def search_rows(self, queries: np.ndarray, k: int, subset: np.ndarray | None) -> Neighbors:
        """The k most similar of some rows, int64, ascending, which are not checked; None: of all."""
        total = len(self) if subset is None else len(subset)
        best = Neighbors(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
        for low in range(0, total, BLOCK_ROWS):
            numbers = np.arange(low, min(low + BLOCK_ROWS, total)) if subset is None else subset[low : low + BLOCK_ROWS]
            first, last = int(numbers[0]), int(numbers[-1]) + 1
            contiguous = last - first == len(numbers)
            block = self.vectors[first:last] if contiguous else self.vectors[numbers]
            similarity, position = self._knn(queries, np.asarray(block), min(k, len(numbers)))
            best = _merged(best, Neighbors(numbers[position], similarity), k)
        return best

    def _knn(self, queries: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Batches as one matrix product: FAISS's threshold for that varies by build, up to 128,000 queries."""
        variables = self._faiss.cvar
        threshold = variables.distance_compute_blas_threshold
        variables.distance_compute_blas_threshold = BLAS_QUERIES
        try:
            nearest: tuple[np.ndarray, np.ndarray] = self._faiss.knn(
                queries, block, k, metric=self._faiss.METRIC_INNER_PRODUCT
            )
            return nearest
        finally:
            variables.distance_compute_blas_threshold = threshold


def import_faiss() -> Any:
    """The module, or an ImportError that names the extra."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("retrieval needs FAISS: pip install 'syvla[rl]'") from error
    return faiss


def _merged(a: Neighbors, b: Neighbors, k: int) -> Neighbors:
    """The k best of both, best first; of equal ones the lower row first, so that blocks do not matter."""
    rows = np.concatenate((a.rows, b.rows), axis=1)
    similarities = np.concatenate((a.similarities, b.similarities), axis=1)
    order = np.lexsort((rows, -similarities))[:, :k]
    return Neighbors(np.take_along_axis(rows, order, 1), np.take_along_axis(similarities, order, 1))
