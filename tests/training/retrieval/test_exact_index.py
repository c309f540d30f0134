"""The search finds exactly what the paper's formula ranks first."""

import numpy as np
import pytest

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")

from syvla.training.retrieval import exact_index as retrieval
from syvla.training.retrieval.approximate_index import ApproximateIndex
from syvla.training.retrieval.embedding_store import EmbeddingStore, Manifest, weighted_vectors
from syvla.training.retrieval.exact_index import SimilarSampleIndex

VIEWS, WEIGHTS, DIM = ["center", "left_wrist", "right_wrist"], np.array([0.83, 0.083, 0.083]), 16


class LookUp:
    """Encoder of pictures whose first row is the feature vector itself."""

    dim = DIM

    def encode(self, images):
        return np.stack([image[0, :, 0].astype(np.float32) - 128 for image in images])

    def fingerprint(self):
        return "look-up"


def picture(vector):
    return np.repeat((vector + 128).astype(np.uint8)[None, :, None], 3, axis=2)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return rng.integers(-100, 100, (400, 3, DIM)).astype(np.float32)


@pytest.fixture
def mask():
    mask = np.ones((400, 3), bool)
    mask[::3, 2] = False
    mask[5::11, 0] = False
    return mask


@pytest.fixture
def folder(features, mask, tmp_path):
    """Frames of two tasks that alternate in runs of 50."""
    manifest = Manifest("data", "look-up", 400, VIEWS, WEIGHTS.tolist(), DIM, ["lift", "place"], shard_rows=400)
    store = EmbeddingStore.create(tmp_path / "store", manifest, np.arange(400) // 50 % 2)
    store.write_shard(0, weighted_vectors(features, mask, np.sqrt(WEIGHTS)), mask)
    store.mark_done(0)
    return store.folder


@pytest.fixture
def index(folder):
    return SimilarSampleIndex(folder, LookUp())


def formula(sample, features, mask, weights=WEIGHTS):
    """sum over v of w_v * cosine, in float64, view by view; a view that either side lacks counts 0."""
    total = np.zeros(len(features))
    for column, view in enumerate(VIEWS):
        if view in sample:
            x = sample[view][0, :, 0].astype(np.float64) - 128
            y = features[:, column].astype(np.float64)
            cosine = (y @ x) / (np.linalg.norm(x) * np.linalg.norm(y, axis=1))
            total += weights[column] * np.where(mask[:, column], cosine, 0.0)
    return total


def samples(count, seed=1):
    rng = np.random.default_rng(seed)
    made = [{view: picture(rng.integers(-100, 100, DIM)) for view in VIEWS} for _ in range(count)]
    made[0].pop("left_wrist")
    made[1].pop("center")
    return made


@pytest.mark.parametrize("block", [7, 64, 65_536])
def test_search_is_the_formula(index, features, mask, monkeypatch, block):
    monkeypatch.setattr(retrieval, "BLOCK_ROWS", block)
    queries = samples(6)
    found = index.search(index.encode(queries), 10)
    for query, rows, similarities in zip(queries, found.rows, found.similarities, strict=True):
        truth = formula(query, features, mask)
        np.testing.assert_allclose(similarities, np.sort(truth)[::-1][:10], atol=1e-6)
        np.testing.assert_array_equal(rows, np.argsort(-truth, kind="stable")[:10])


def test_a_sample_is_most_similar_to_itself(index, features, mask):
    rows = np.flatnonzero(mask.all(1))[:5]
    own = [{view: picture(features[row, i]) for i, view in enumerate(VIEWS)} for row in rows]
    found = index.search(index.encode(own), 1)
    assert found.rows[:, 0].tolist() == rows.tolist()
    np.testing.assert_allclose(found.similarities[:, 0], WEIGHTS.sum(), atol=1e-5)


@pytest.mark.parametrize("block", [13, 65_536])
def test_search_within_the_same_task(index, features, mask, monkeypatch, block):
    monkeypatch.setattr(retrieval, "BLOCK_ROWS", block)
    queries, tasks = samples(4), ["place", "lift", "place", "lift"]
    found = index.search(index.encode(queries), 5, tasks)
    for query, task, rows in zip(queries, tasks, found.rows, strict=True):
        truth = formula(query, features, mask)
        truth[(np.arange(400) // 50 % 2) != (task == "place")] = -np.inf
        np.testing.assert_array_equal(rows, np.argsort(-truth, kind="stable")[:5])


def test_rows_that_are_not_allowed_are_never_found(folder, features, mask):
    allowed = np.arange(400) % 3 != 0
    index = SimilarSampleIndex(folder, LookUp(), allowed=allowed)
    queries = samples(3)
    for tasks in (None, ["lift"] * 3):
        rows = index.search(index.encode(queries), 20, tasks).rows
        assert allowed[rows].all()
    truth = np.where(allowed, formula(queries[2], features, mask), -np.inf)
    found = index.search(index.encode(queries), 20).rows
    np.testing.assert_array_equal(found[2], np.argsort(-truth, kind="stable")[:20])


def test_other_weights_need_no_new_vectors(folder, features, mask):
    weights = {"center": 0.2, "left_wrist": 0.5, "right_wrist": 0.3}
    index = SimilarSampleIndex(folder, LookUp(), view_weights=weights)
    query = samples(3)[2]
    truth = formula(query, features, mask, list(weights.values()))
    found = index.search(index.encode([query]), 3)
    np.testing.assert_allclose(found.similarities[0], np.sort(truth)[::-1][:3], atol=1e-6)


def test_fewer_rows_than_asked_for_are_marked(index):
    found = index.search(index.encode(samples(2)), 500)
    assert (found.rows[:, :400] >= 0).all()
    assert (found.rows[:, 400:] == -1).all()
    assert np.isneginf(found.similarities[:, 400:]).all()


def test_vectors_stay_on_disk(index):
    assert isinstance(index.vectors, np.memmap)


def test_a_task_without_expert_samples_is_refused(index):
    with pytest.raises(ValueError, match=r"no sample of the task 'fold'; it has .*'lift', 'place'.*same_task=False"):
        index.search(index.encode(samples(2)), 1, ["lift", "fold"])


def test_wrong_stores_and_queries_are_refused(folder, index):
    class Other(LookUp):
        def fingerprint(self):
            return "other"

    with pytest.raises(ValueError, match=r"another encoder \(fingerprint look-up, expected other\); encode again"):
        SimilarSampleIndex(folder, Other())
    with pytest.raises(ValueError, match="queries: expected"):
        index.search(np.zeros((2, 5), np.float32), 1)
    with pytest.raises(ValueError, match="tasks: expected one for each of the 2 queries, got 1"):
        index.search(index.encode(samples(2)), 1, ["lift"])


def test_a_weight_of_zero_cannot_be_raised_later(features, mask, tmp_path):
    manifest = Manifest("data", "look-up", 400, VIEWS, [1.0, 0.0, 0.0], DIM, ["lift"], shard_rows=400)
    store = EmbeddingStore.create(tmp_path / "store", manifest, np.zeros(400))
    store.write_shard(0, weighted_vectors(features, mask, [1.0, 0.0, 0.0]), mask)
    store.mark_done(0)
    with pytest.raises(ValueError, match="a 0 cannot be raised later"):
        SimilarSampleIndex(store.folder, LookUp(), view_weights=dict.fromkeys(VIEWS, 1.0))


@pytest.mark.parametrize("tasks", [None, ["lift", "place"] * 3])
@pytest.mark.parametrize("allowed", [None, np.arange(400) % 3 != 0])
def test_an_approximate_index_that_misses_nothing_is_the_exact_one(folder, allowed, tasks):
    weights = {"center": 0.2, "left_wrist": 0.5, "right_wrist": 0.3}
    exact = SimilarSampleIndex(folder, LookUp(), view_weights=weights, allowed=allowed)
    index = ApproximateIndex(exact, "Flat", k=7, same_task=tasks is not None)
    assert index.recall == 1.0
    queries = exact.encode(samples(6))
    for k in (7, 300):
        found, truth = index.search(queries, k, tasks), exact.search(queries, k, tasks)
        np.testing.assert_array_equal(found.rows, truth.rows)
        np.testing.assert_allclose(found.similarities, truth.similarities, atol=1e-6)


@pytest.mark.parametrize("factory", ["IVF8,Flat", "HNSW8", "PQ4x4"])
def test_an_approximate_index_finds_k_allowed_rows_of_the_task(folder, factory):
    """Also where it proposes too few: two of eight cells, or a task with two of the 135 allowed rows."""
    allowed = (np.arange(400) % 3 != 0) & ((np.arange(400) // 50 % 2 == 0) | (np.arange(400) < 53))
    exact = SimilarSampleIndex(folder, LookUp(), allowed=allowed)
    assert len(exact.rows_of("place")) == 2
    index = ApproximateIndex(exact, factory)
    queries = exact.encode(samples(6))
    found = index.search(queries, 100)
    assert allowed[found.rows].all()
    assert all(len(set(rows)) == 100 for rows in found.rows.tolist())
    assert (np.diff(found.similarities) <= 0).all()
    rows = index.search(queries, 5, ["lift", "place"] * 3).rows
    assert (exact.task_index[rows[::2]] == 0).all()
    assert allowed[rows[::2]].all()
    assert (rows[1::2, 2:] == -1).all()
    np.testing.assert_array_equal(np.sort(rows[1::2, :2]), np.tile(exact.rows_of("place"), (3, 1)))


def test_an_approximate_index_reports_its_recall_and_is_kept(index, caplog):
    caplog.set_level("INFO", "syvla.training.retrieval.approximate_index")
    first = ApproximateIndex(index, "IVF64,Flat")
    queries = index.vectors[np.random.default_rng(0).choice(400, 256, replace=False)]
    hits = [
        len(set(a) & set(b)) / 10
        for a, b in zip(first.search(queries, 10).rows, index.search(queries, 10).rows, strict=True)
    ]
    assert first.recall == pytest.approx(np.mean(hits), abs=1e-3)
    assert 0.1 < first.recall < 1.0, "8 of 64 cells are searched"
    assert f"IVF64,Flat: recall at 10 is {first.recall:.3f} over 256 queries" in caplog.text
    written = (index.store.folder / "approximate.faiss").stat().st_mtime_ns
    again = ApproximateIndex(index, "IVF64,Flat")
    assert (index.store.folder / "approximate.faiss").stat().st_mtime_ns == written
    assert again.recall == first.recall
    np.testing.assert_array_equal(again.search(queries, 3).rows, first.search(queries, 3).rows)


def test_a_kept_index_over_other_rows_is_not_taken(folder):
    for parity in (0, 1):
        allowed = np.arange(400) % 2 == parity
        exact = SimilarSampleIndex(folder, LookUp(), allowed=allowed)
        index = ApproximateIndex(exact, "Flat")
        assert index.recall == 1.0
        assert allowed[index.search(exact.encode(samples(3)), 20).rows].all()


@pytest.mark.parametrize("factory", ["IVF8Flat", "LSH", "PQ7", "IVF1024,Flat", "IDMap,Flat"])
def test_a_factory_string_of_no_index_is_refused(index, factory):
    with pytest.raises(
        ValueError, match=f"approximate_index: FAISS makes no index of '{factory}' and 400 vectors of 48"
    ):
        ApproximateIndex(index, factory)
    assert not (index.store.folder / "approximate.faiss").exists()
