"""Exact search of similar samples in a large dataset: `python -m benchmarks.retrieval`.

1,000,000 frames with three views of 512 features (6 GB on disk; `--rows` makes it smaller) and a batch of 64 observations.
Compared in one run, taking turns: the shipped search (FAISS over the memory-mapped file), and a plain torch product of the
whole matrix in memory with `topk`. Agreement is checked against the paper's formula, written out view by view in float64.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reporting import interleaved_seconds, print_table, write_result
from syvla.training.retrieval.embedding_store import VIEW_WEIGHTS, EmbeddingStore, Manifest, weighted_vectors
from syvla.training.retrieval.exact_index import BLOCK_ROWS, SimilarSampleIndex, import_faiss

VIEWS, DIM, CLUSTERS, BLOCK = tuple(VIEW_WEIGHTS), 512, 2000, 1000


class NoEncoder:
    """Queries are made here from features, so nothing is encoded."""

    dim = DIM

    def encode(self, images: Any) -> np.ndarray:
        raise NotImplementedError

    def fingerprint(self) -> str:
        return "random"


def features(first: int, last: int, centers: np.ndarray) -> np.ndarray:
    """Features (last - first, V, dim) of rows around common centers, as frames of similar scenes are; by blocks of rows."""
    parts = []
    for block in range(first // BLOCK, -(-last // BLOCK)):
        generator = np.random.default_rng(block)
        chosen = centers[generator.integers(len(centers), size=(BLOCK, len(VIEWS)))]
        values = chosen + generator.standard_normal((BLOCK, len(VIEWS), DIM), dtype=np.float32)
        parts.append(values[max(first - block * BLOCK, 0) : last - block * BLOCK])
    return np.concatenate(parts)


def build(folder: Path, rows: int, centers: np.ndarray) -> EmbeddingStore:
    weights = list(VIEW_WEIGHTS.values())
    manifest = Manifest("random", "random", rows, list(VIEWS), weights, DIM, ["task"], shard_rows=20_000)
    store = EmbeddingStore.create(folder, manifest, np.zeros(rows))
    for number in store.missing_shards():
        low, high = manifest.shards[number]
        mask = np.ones((high - low, len(VIEWS)), bool)
        values = features(low, high, centers)
        store.write_shard(number, weighted_vectors(values, mask, np.sqrt(weights)), mask)
        store.mark_done(number)
    return store


def formula(queries: np.ndarray, values: np.ndarray) -> np.ndarray:
    """sum over v of w_v * cosine in float64, (queries, rows), from features (rows, V, dim)."""
    total = np.zeros((len(queries), len(values)))
    for view, weight in enumerate(VIEW_WEIGHTS.values()):
        x, y = (part[:, view].astype(np.float64) for part in (queries, values))
        norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
        total += weight * (x @ y.T) / norms
    return total


def check(index: SimilarSampleIndex, queries: np.ndarray, vectors: np.ndarray, k: int, centers: np.ndarray) -> dict:
    """Largest error of the similarities found, and whether a row is missing that the formula ranks higher.

    The formula is applied to all rows in blocks, for as many queries as fit; ties within float32 rounding may swap.
    """
    found = index.search(vectors, k)
    best = np.full((len(queries), k), -np.inf)
    for low in range(0, len(index), 10_000):
        truth = formula(queries, features(low, min(low + 10_000, len(index)), centers))
        best = -np.sort(-np.concatenate((best, truth), axis=1), axis=1)[:, :k]
    worst, misses = 0.0, 0
    for query in range(len(queries)):
        rows = [features(row, row + 1, centers)[0] for row in found.rows[query].tolist()]
        truth = formula(queries[query : query + 1], np.stack(rows))[0]
        worst = max(worst, float(np.abs(truth - found.similarities[query]).max()))
        misses += int((np.abs(np.sort(truth)[::-1] - best[query]) > 1e-6).sum())
    return {"largest_error": worst, "rows_missed": misses, "neighbors_checked": len(queries) * k}


def processor_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Least time of one call on the processor, over all threads: what else runs on the machine does not count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--top_k", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of both; spinning threads distort a shared machine")
    parser.add_argument(
        "--checked_queries", type=int, default=16, help="queries compared with the formula over all rows"
    )
    parser.add_argument("--folder", type=Path, help="where to keep the vectors; none: a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    import_faiss().omp_set_num_threads(options.threads)
    centers = np.random.default_rng(0).standard_normal((CLUSTERS, DIM), dtype=np.float32)
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        store = build(options.folder or Path(temporary) / "store", options.rows, centers)
        building = time.perf_counter() - start
        index = SimilarSampleIndex(store.folder, NoEncoder())
        raw = features(options.rows, options.rows + options.batch, centers)
        ones = np.ones((options.batch, len(VIEWS)), bool)
        queries = weighted_vectors(raw, ones, np.sqrt(list(VIEW_WEIGHTS.values())))
        few = options.checked_queries
        agreement = check(index, raw[:few], queries[:few], options.top_k, centers)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        matrix = torch.from_numpy(np.array(index.vectors))
        plain = torch.from_numpy(queries)
        variants = {
            "search": lambda: index.search(queries, options.top_k),
            "torch": lambda: torch.topk(plain @ matrix.T, options.top_k, dim=1),
        }
        seconds = interleaved_seconds(variants, options.repeats)
        busy = {name: processor_seconds(run, options.repeats) for name, run in variants.items()}
        same = (variants["torch"]().indices.numpy() == variants["search"]().rows).mean()
    rate = {name: options.batch / value for name, value in seconds.items()}
    result = {
        "settings": {
            "rows": options.rows,
            "views": len(VIEWS),
            "features": DIM,
            "batch": options.batch,
            "k": options.top_k,
        },
        **agreement,
        "same_rows_as_torch": float(same),
        "queries_per_second": rate,
        "search_over_torch": rate["search"] / rate["torch"],
        "processor_seconds": busy,
        "vectors_gib": store.manifest.rows * store.manifest.width * 4 / 2**30,
        "block_mib": BLOCK_ROWS * store.manifest.width * 4 / 2**20,
        "peak_resident_mib_before_torch": own,
        "building_seconds": building,
    }
    rows = [[name, seconds[name], busy[name], rate[name]] for name in variants]
    print_table(["", "seconds", "processor s", "queries /s"], rows)
    print(
        f"largest error {agreement['largest_error']:.2g}, rows missed {agreement['rows_missed']}, same rows {same:.4f}"
    )
    print(write_result("retrieval", result))


if __name__ == "__main__":
    main()
