"""An approximate index over the stored vectors, for data sets too large to search exactly; it reports its recall."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from processing.lerobot_format import write_atomically, write_json

from .retrieval import BLOCK_ROWS, Neighbours, SimilarSampleIndex, import_faiss

INDEX_FILE = "approximate.faiss"
FACTS_FILE = "approximate.json"


class ApproximateIndex:
    """FAISS index of a factory string over the vectors of a [`SimilarSampleIndex`].

    Args:
        exact: The exact index; its store's folder keeps the approximate one, which later runs read again.
        factory: FAISS's description, such as "HNSW32" or "IVF1024,Flat".
        recall_queries: Rows of the store that are searched in both ways to measure the recall.
        seed: Of the choice of these rows.

    Attributes:
        recall: Share of the exact ten best rows that are among the ten found, mean over the queries.
    """

    def __init__(self, exact: SimilarSampleIndex, factory: str, *, recall_queries: int = 256, seed: int = 0) -> None:
        self._exact, self._faiss = exact, import_faiss()
        self.facts: dict[str, Any] = {
            "factory": factory,
            "dataset": exact.manifest.dataset,
            "encoder": exact.manifest.encoder,
            "view_weights": exact.manifest.view_weights,
        }
        path = exact.store.folder / INDEX_FILE
        known = _read_facts(exact.store.folder)
        if path.is_file() and all(known.get(key) == value for key, value in self.facts.items()):
            self._index = self._faiss.read_index(str(path))
            self.facts = known
        else:
            self._index = self._build(factory)
            self.facts["recall_at_10"] = self._measure(recall_queries, seed)
            write_atomically(path, lambda temporary: self._faiss.write_index(self._index, str(temporary)))
            write_json(exact.store.folder / FACTS_FILE, self.facts)
        self.recall: float = self.facts["recall_at_10"]

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """As [`SimilarSampleIndex.search`] over all tasks, but a better row may be missed."""
        similarities, rows = self._index.search(np.ascontiguousarray(queries, np.float32), k)
        return Neighbours(rows, np.where(rows < 0, -np.inf, similarities).astype(np.float32))

    def _build(self, factory: str) -> Any:
        vectors = self._exact.vectors
        index = self._faiss.index_factory(vectors.shape[1], factory, self._faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            rows = np.linspace(0, len(vectors) - 1, min(len(vectors), 100_000)).astype(np.int64)
            index.train(np.ascontiguousarray(vectors[rows]))
        for low in tqdm(range(0, len(vectors), BLOCK_ROWS), desc="Indexing", disable=len(vectors) < 2 * BLOCK_ROWS):
            index.add(np.ascontiguousarray(vectors[low : low + BLOCK_ROWS]))
        return index

    def _measure(self, count: int, seed: int) -> float:
        rows = np.random.default_rng(seed).choice(len(self._exact), min(count, len(self._exact)), replace=False)
        queries, k = np.ascontiguousarray(self._exact.vectors[np.sort(rows)]), min(10, len(self._exact))
        truth, found = self._exact.search(queries, k).rows, self.search(queries, k).rows
        hits = [len(set(a) & set(b)) for a, b in zip(truth.tolist(), found.tolist(), strict=True)]
        return float(np.mean(hits)) / k


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
