"""The plan counts what can be counted by hand on a small dataset."""

import numpy as np
import pytest

from benchmarks.streaming_plan import Plan, describe, made_up


@pytest.fixture(scope="module")
def plan():
    return Plan.of(made_up(0.0121, cameras=2, camera_mb=6.0, seconds=2, fps=5))


def test_files_requests_and_sizes(plan):
    # 1000 episodes of 2 x 6 MB and 0.1 MB; 33 episodes fill a video file of 200 MB, 1000 a data file of 100 MB.
    found = describe(plan)
    assert found["episodes"] == 1000
    assert found["frames"] == 10_000
    assert found["files"] == 1 + 2 * 31
    assert found["terabytes"] == pytest.approx((100 + 62 * 200) / 1e6)
    # Parts of 16 MiB: 6 of the data file and 12 of a video file, and one request for the version of each.
    assert found["requests_for_every_file_once"] == 7 + 62 * 13


def test_an_episode_lies_in_the_files_that_its_metadata_names(plan):
    for episode in (0, 32, 33, 999):
        data, first, second = plan.files[episode].tolist()
        assert (data, first, second) == (0, 1 + episode // 33, 32 + episode // 33)
        camera = "observation.images.camera_1"
        assert plan.metadata.video(episode, camera).path.endswith(f"file-{episode // 33:03d}.mp4")


def test_a_cache_that_holds_everything_fetches_every_file_once_at_most(plan):
    found = plan.run(batch_size=100, batches=100, cache_bytes=10**12, shuffle_files=None)
    assert found["files_per_sample"] * found["samples"] == pytest.approx(63)
    assert found["megabytes_per_sample"] * found["samples"] == pytest.approx(100 + 62 * 200)


def test_a_small_cache_serves_the_order_of_few_files_and_not_the_whole_shuffle(plan):
    small = 2 * (100 + 4 * 400) * 10**6
    whole = plan.run(batch_size=100, batches=100, cache_bytes=small, shuffle_files=None)
    few = plan.run(batch_size=100, batches=100, cache_bytes=small, shuffle_files=4)
    assert few["files_per_sample"] * few["samples"] == pytest.approx(63), "a pass fetches every file once"
    assert whole["megabytes_per_sample"] > 20 * few["megabytes_per_sample"]
    assert np.isfinite(whole["requests_per_sample"])
