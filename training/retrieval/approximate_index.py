"""An approximate index over the stored vectors, for datasets too large to search exactly; it reports its recall."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from syvla.durable_files import write_atomically, write_json

from .exact_index import BLOCK_ROWS, Neighbors, SimilarSampleIndex, import_faiss

logger = logging.getLogger(__name__)

INDEX_FILE = "approximate.faiss"
FACTS_FILE = "approximate.json"

OVER_FETCH = 4
"""Candidates per wanted row, of which the exact similarities choose. Ours."""

MAX_CANDIDATES = 4096
"""Most candidates of a query. Where too few of them have its task, it is searched exactly, which few rows make quick. Ours."""


class ApproximateIndex:
    """FAISS index of a factory string over the allowed vectors of a [`SimilarSampleIndex`].

    It proposes candidates, which are ranked by their exact similarities. Rows that are not allowed are not in it.

    Args:
        exact: The exact index; its store's folder keeps the approximate one, which later runs read again.
        factory: FAISS's description, such as "HNSW32" or "IVF1024,Flat"; of IVF's cells the square root is visited.
        k: Rows per query for which the recall is measured.
        same_task: Whether it is measured within the tasks of the queries.
        recall_queries: Rows of the store that are searched in both ways to measure the recall: those that are not allowed,
            which are as new to the index as a rollout, or any where all are allowed.
        seed: Of the choice of these rows.

    Attributes:
        recall: Share of the exact k best rows that are among the k found, over the queries; NaN without queries.

    Raises:
        ValueError: If FAISS makes no index of the factory string and these vectors.
    """

    def __init__(
        self,
        exact: SimilarSampleIndex,
        factory: str,
        *,
        k: int = 10,
        same_task: bool = False,
        recall_queries: int = 256,
        seed: int = 0,
    ) -> None:
        self._exact, self._faiss = exact, import_faiss()
        allowed = np.ones(len(exact), bool) if exact.allowed is None else exact.allowed
        self._rows = np.flatnonzero(allowed)
        self.facts: dict[str, Any] = {
            "factory": factory,
            "dataset": exact.manifest.dataset,
            "encoder": exact.manifest.encoder,
            "view_weights": exact.manifest.view_weights,
            "allowed": hashlib.sha256(np.packbits(allowed).tobytes()).hexdigest(),
        }
        path, facts_path = exact.store.folder / INDEX_FILE, exact.store.folder / FACTS_FILE
        if path.is_file() and _read_facts(facts_path) == self.facts:
            self._index = self._faiss.read_index(str(path))
        else:
            try:
                self._index = self._build(factory)
            except RuntimeError as error:
                raise ValueError(
                    f"approximate_index: FAISS makes no index of {factory!r} and {len(self._rows)} vectors of "
                    f"{exact.manifest.width} numbers ({str(error).splitlines()[0]}); pass a factory string such as HNSW32 or "
                    "IVF1024,Flat (fewer cells than vectors), or leave it out to search exactly"
                ) from error
            facts_path.unlink(missing_ok=True)  # so that it never describes another index
            write_atomically(path, lambda temporary: self._faiss.write_index(self._index, str(temporary)))
            write_json(facts_path, self.facts)
        self.recall, queries = self._measure(k, same_task, allowed, recall_queries, seed)
        logger.info("approximate_index %s: recall at %d is %.3f over %d queries", factory, k, self.recall, queries)

    def search(self, queries: np.ndarray, k: int, tasks: Sequence[str] | None = None) -> Neighbors:
        """As [`SimilarSampleIndex.search`], but a better row may be missed. Queries with too few candidates are exact."""
        exact, queries = self._exact, np.ascontiguousarray(queries, np.float32)
        rarest = min((len(exact.rows_of(task)) for task in dict.fromkeys(tasks or ())), default=len(self._rows))
        wanted = math.ceil(OVER_FETCH * k * len(self._rows) / rarest)
        positions = self._index.search(queries, min(wanted, MAX_CANDIDATES, len(self._rows)))[1]
        rows = np.full((len(queries), k), -1, np.int64)
        similarities = np.full((len(queries), k), -np.inf, np.float32)
        short = []
        for number, found in enumerate(positions):
            candidates = self._rows[found[found >= 0]]
            if tasks is not None:
                candidates = candidates[exact.task_index[candidates] == exact.manifest.tasks.index(tasks[number])]
            if len(candidates) < k:
                short.append(number)
                continue
            best = exact.search_rows(queries[number : number + 1], k, np.sort(candidates[: OVER_FETCH * k]))
            rows[number], similarities[number] = best.rows[0], best.similarities[0]
        if short:
            best = exact.search(queries[short], k, None if tasks is None else [tasks[number] for number in short])
            rows[short], similarities[short] = best.rows, best.similarities
        return Neighbors(rows, similarities)

    def _build(self, factory: str) -> Any:
        vectors, rows = self._exact.vectors, self._rows
        index = self._faiss.index_factory(vectors.shape[1], factory, self._faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), 100_000)).astype(np.int64)]
            index.train(np.ascontiguousarray(vectors[chosen]))
        for low in tqdm(range(0, len(rows), BLOCK_ROWS), desc="Indexing", disable=len(rows) < 2 * BLOCK_ROWS):
            index.add(np.ascontiguousarray(vectors[rows[low : low + BLOCK_ROWS]]))
        if (cells := self._faiss.try_extract_index_ivf(index)) is not None:
            cells.nprobe = math.isqrt(cells.nlist)
        return index

    def _measure(self, k: int, same_task: bool, allowed: np.ndarray, count: int, seed: int) -> tuple[float, int]:
        """Recall and the number of queries."""
        exact = self._exact
        pool = np.arange(len(exact)) if allowed.all() else np.flatnonzero(~allowed)
        if same_task:
            pool = pool[np.isin(exact.task_index[pool], exact.task_index[self._rows])]
        chosen = np.sort(np.random.default_rng(seed).choice(pool, min(count, len(pool)), replace=False))
        if not len(chosen):
            return math.nan, 0
        queries = exact.stored_queries(chosen)
        tasks = [exact.manifest.tasks[number] for number in exact.task_index[chosen]] if same_task else None
        truth, found = exact.search(queries, k, tasks).rows, self.search(queries, k, tasks).rows
        hits = sum(len(np.intersect1d(a[a >= 0], b)) for a, b in zip(truth, found, strict=True))
        return hits / int((truth >= 0).sum()), len(chosen)


def _read_facts(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
