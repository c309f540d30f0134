"""Encoding a dataset: complete, equal however it was split, resumed after a kill."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from killed_processes import killed_at

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import RobotDataset, build_tiny_processor
from syvla.training.retrieval.embedding_store import EmbeddingStore, dataset_fingerprint, weighted_vectors
from syvla.training.retrieval.encode_dataset import encode_datasets, encode_views, main
from syvla.training.retrieval.image_encoders import load_encoder

CAMERAS = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}
VIEWS = ["center", "left_wrist", "right_wrist"]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def dataset(robot_dataset_path):
    return RobotDataset(robot_dataset_path, embodiment="two_arms", cameras=CAMERAS)


@pytest.fixture(scope="module")
def encoder(tiny_clip):
    return f"clip:{tiny_clip}"


@pytest.fixture
def policy(dataset, tmp_path):
    config = SyVLAConfig.tiny(embodiments={"two_arms": {"state_dim": 14, "action_dim": 14}})
    processor = build_tiny_processor(config)
    processor.set_embodiment("two_arms", dataset.statistics())
    processor.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def encode(dataset, encoder, folder, **options):
    return encode_datasets([dataset], encoder, folder, progress=False, **options)


def test_rows_are_weighted_unit_vectors_of_each_view(dataset, encoder, tmp_path):
    store = encode(dataset, encoder, tmp_path / "store")
    model = load_encoder(encoder)
    vectors = store.array("vectors").reshape(len(dataset), 3, model.dim)
    for row in (0, 17, 35):
        for column, view in enumerate(("center", "left_wrist")):
            feature = model.encode([dataset.read_image(view, row)])[0]
            weight = (0.83, 0.083)[column]
            expected = np.sqrt(weight) * feature / np.linalg.norm(feature)
            np.testing.assert_allclose(vectors[row, column], expected, atol=1e-5)
    assert not vectors[:, 2].any(), "the dataset has no right wrist camera"
    assert store.array("view_mask").tolist() == [[True, True, False]] * 36
    assert store.manifest.tasks == ["lift the red cube"]


@pytest.mark.slow
def test_processes_and_parts_change_nothing(dataset, encoder, tmp_path):
    whole = encode(dataset, encoder, tmp_path / "whole")
    parts = encode(dataset, encoder, tmp_path / "parts", workers=2, shard_rows=10, batch_size=7)
    np.testing.assert_allclose(parts.array("vectors"), whole.array("vectors"), atol=1e-6)
    assert not (parts.folder / "progress.json").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(dataset, encoder, policy, robot_dataset_path, tmp_path):
    """kill -9 in the middle; the restart keeps the finished parts and ends with the vectors of an unbroken run."""
    spec = json.dumps({"path": str(robot_dataset_path), "cameras": CAMERAS})
    arguments = [
        "--policy_path",
        policy,
        "--robot_datasets",
        spec,
        "--encoder",
        encoder,
        "--output",
        tmp_path / "store",
    ]
    arguments = [str(a) for a in (*arguments, "--shard_rows", 2, "--batch_size", 1)]
    mark = "syvla.training.retrieval.embedding_store:EmbeddingStore.mark_done"
    command = killed_at("syvla.training.retrieval.encode_dataset", mark, "len(args[0].missing_shards()) == 15")
    killed = subprocess.run([*command, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    store = EmbeddingStore(tmp_path / "store")
    done = sorted(set(range(18)) - set(store.missing_shards()))
    assert len(done) == 3, "a fourth was encoded but is not marked"
    with pytest.raises(ValueError, match=r"15 of 18 parts are not encoded yet; run syvla-encode again"):
        store.require_complete()
    marked = store.array("vectors", "r+")
    marked[2 * done[0]] = 7.0  # encoded again it would be overwritten
    marked.flush()
    assert main(arguments) == 0
    store.require_complete()
    whole = encode(dataset, encoder, tmp_path / "whole").array("vectors")
    found = store.array("vectors")
    assert (found[2 * done[0]] == 7.0).all()
    others = np.arange(36) != 2 * done[0]
    np.testing.assert_allclose(found[others], whole[others], atol=1e-6)


def test_another_data_set_encoder_or_weighting_is_refused(dataset, encoder, robot_dataset_path, policy, tmp_path):
    folder = tmp_path / "store"
    encode(dataset, encoder, folder)
    part = RobotDataset(robot_dataset_path, embodiment="two_arms", cameras=CAMERAS, episodes=[0, 1])
    with pytest.raises(ValueError, match=re.escape("was made from another dataset (fingerprint ")):
        encode(part, encoder, folder)
    torch_policy = SyVLAModel(SyVLAConfig.tiny(embodiments={"two_arms": {"state_dim": 14, "action_dim": 14}}))
    torch_policy.save_pretrained(policy)
    with pytest.raises(ValueError, match=re.escape("was made from another encoder (fingerprint ")):
        encode(dataset, f"policy:{policy}", folder)
    with pytest.raises(ValueError, match="was made with other view weights"):
        encode(dataset, encoder, folder, view_weights=dict.fromkeys(VIEWS, 1.0))


def test_the_fingerprint_of_a_data_set_is_that_of_its_contents(dataset, robot_dataset_path, tmp_path):
    import shutil

    copy = shutil.copytree(robot_dataset_path, tmp_path / "copy")
    options = {"embodiment": "two_arms", "cameras": CAMERAS}
    same = dataset_fingerprint([RobotDataset(copy, **options)])
    assert same == dataset_fingerprint([dataset])
    others = [
        RobotDataset(copy, **{**options, "cameras": {"center": CAMERAS["left_wrist"]}}),
        RobotDataset(copy, **options, episodes=[1, 0, 2]),
        RobotDataset(copy, **{**options, "embodiment": "arms"}),
    ]
    assert len({same, *(dataset_fingerprint([other]) for other in others)}) == 4


def test_damaged_stores_and_features_are_named(dataset, encoder, tmp_path):
    with pytest.raises(ValueError, match=r"no usable store of feature vectors .* make one with syvla-encode"):
        EmbeddingStore(tmp_path)
    store = encode(dataset, encoder, tmp_path / "store")
    np.save(store.folder / "view_mask.npy", np.zeros((3, 3), bool))
    with pytest.raises(ValueError, match=r"view_mask.npy has shape \(3, 3\), expected \(36, 3\)"):
        EmbeddingStore(store.folder)
    with pytest.raises(ValueError, match="vector of zeros, NaN or infinity"):
        weighted_vectors(np.full((1, 1, 4), np.nan), np.ones((1, 1), bool), [1.0])
    model, image = load_encoder(encoder), np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"sample 1: has none of the views"):
        encode_views(model, [{"center": image}, {"top": image}], VIEWS, [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    "weights", [{"center": 1.0}, dict.fromkeys(VIEWS, 0.0), {**dict.fromkeys(VIEWS, 1), "top": -1}]
)
def test_weights_of_views_are_checked(dataset, encoder, tmp_path, weights):
    with pytest.raises(ValueError, match="view_weights: expected a number of at least 0 for each of"):
        encode(dataset, encoder, tmp_path / "store", view_weights=weights)
