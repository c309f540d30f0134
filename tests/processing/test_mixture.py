"""The mixture sampler: exact shares, true permutations, ranks that share out one stream, exact resumption."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from syvla.processing.mixture import MixtureBatchSampler, MixtureDataset, shuffled_indices

ROBOTS, CHATS = [37, 11], [23, 5]


def make(rank=0, world=1, batch=4, share=0.3, **kwargs):
    return MixtureBatchSampler(
        ROBOTS, CHATS, batch_size=batch, multimodal_share=share, rank=rank, world_size=world, **kwargs
    )


def take(sampler, count):
    """The next `count` batches, over as many epochs as it takes."""
    batches = []
    while len(batches) < count:
        batches.extend(islice(iter(sampler), count - len(batches)))
    return batches


def chats_in(batch) -> int:
    return sum(source >= len(ROBOTS) for source, _ in batch)


# ---------------------------------------------------------------- share


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.35, 0.5, 0.999, 1.0])
@pytest.mark.parametrize(("batch", "world"), [(1, 1), (4, 1), (1, 8), (4, 3), (32, 2)])
def test_share_is_within_one_sample_over_any_prefix_on_each_rank_and_in_sum(share, batch, world):
    counts = np.array(
        [np.cumsum([chats_in(b) for b in take(make(rank, world, batch, share), 120)]) for rank in range(world)]
    )
    drawn = np.arange(1, 121) * batch
    assert np.abs(counts - share * drawn).max() < 1
    assert np.abs(counts.sum(axis=0) - share * drawn * world).max() < 1


def test_every_batch_is_full_and_its_share_differs_by_less_than_one():
    for batch in take(make(batch=32, share=0.35), 50):
        assert len(batch) == 32
        assert chats_in(batch) in (11, 12)
    for batch in take(make(batch=20, share=0.35), 50):
        assert chats_in(batch) == 7, "a whole number is met in every batch"


# ---------------------------------------------------------------- which samples


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 255, 256, 257, 1000])
def test_shuffled_index_is_a_permutation(size):
    for seed in ((0,), (1, 2, 3)):
        assert sorted(shuffled_indices(np.arange(size), size, seed).tolist()) == list(range(size))


def test_shuffles_of_other_seeds_differ_and_leave_no_order():
    size = 5000
    first, second = (shuffled_indices(np.arange(size), size, (seed, 0, 0)).tolist() for seed in (0, 1))
    assert np.mean(np.array(first) == np.array(second)) < 0.01
    for order in (first, second):
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
        assert np.mean(np.abs(np.diff(order)) == 1) < 0.01, "neighboring frames of a video do not stay together"


def test_shuffling_a_huge_dataset_costs_nothing():
    huge = 10**12
    got = set(shuffled_indices(np.arange(1000), huge, (0,)).tolist())
    assert len(got) == 1000
    assert all(0 <= index < huge for index in got)
    assert np.mean(list(got)) == pytest.approx(huge / 2, rel=0.1)


def test_each_dataset_is_seen_once_per_pass_and_in_another_order_each_time():
    orders = {source: [] for source in range(4)}
    for batch in take(make(batch=8), 60):
        for source, index in batch:
            orders[source].append(index)
    for source, size in enumerate([*ROBOTS, *CHATS]):
        seen = orders[source]
        assert len(seen) >= 2 * size
        first, second = seen[:size], seen[size : 2 * size]
        assert sorted(first) == sorted(second) == list(range(size))
        assert first != second


def test_datasets_come_in_proportion_to_their_size_or_weight():
    total = 4000
    for weights, expected in (
        ({}, [0.7 * 37 / 48, 0.7 * 11 / 48, 0.3 * 23 / 28, 0.3 * 5 / 28]),
        ({"robot_weights": [1, 3], "multimodal_weights": [0.5, 0.5]}, [0.175, 0.525, 0.15, 0.15]),
        ({"robot_weights": [0, 2.0], "multimodal_weights": [1, 0]}, [0, 0.7, 0.3, 0]),
    ):
        counts = Counter(source for batch in take(make(batch=8, **weights), total // 8) for source, _ in batch)
        for source, share in enumerate(expected):
            assert counts[source] == pytest.approx(total * share, abs=5), (weights, source)


def test_the_order_depends_on_the_seed_alone():
    assert take(make(seed=3), 30) == take(make(seed=3), 30)
    assert take(make(seed=3), 30) != take(make(seed=4), 30)
    one = make(seed=3)
    np.random.seed(0)
    assert take(one, 30) == take(make(seed=3), 30)


# ---------------------------------------------------------------- ranks


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.35])
def test_ranks_share_out_one_stream(world, share):
    """Together they draw, batch for batch, exactly what a single process with the same global batch draws."""
    alone = take(make(0, 1, 4 * world, share), 40)
    ranks = [take(make(rank, world, 4, share), 40) for rank in range(world)]
    for step in range(40):
        together = [sample for rank in ranks for sample in rank[step]]
        assert Counter(together) == Counter(alone[step])


def test_no_sample_is_drawn_twice_within_a_pass():
    world = 3
    ranks = [take(make(rank, world, 2), 8) for rank in range(world)]
    drawn = [sample for rank in ranks for batch in rank for sample in batch if sample[0] == 0]
    assert len(drawn) <= ROBOTS[0]
    assert len(set(drawn)) == len(drawn)


# ---------------------------------------------------------------- resumption


@pytest.mark.parametrize("done", [0, 1, 7, 23])
def test_resuming_continues_at_the_exact_next_sample(done):
    for rank in range(2):
        unbroken = take(make(rank, 2), 40)
        first = make(rank, 2)
        take(first, done)
        second = make(rank, 2)
        second.load_state_dict(first.state_dict())
        assert take(second, 40 - done) == unbroken[done:]


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 4), (4, 2)])
def test_resuming_on_another_number_of_ranks_keeps_the_global_batches(before, after):
    """Same global batch of 8, other ranks: the same samples at every step, and the share stays exact."""
    unbroken = take(make(0, 1, 8), 40)
    old = make(0, before, 8 // before)
    take(old, 13)
    ranks = []
    for rank in range(after):
        new = make(rank, after, 8 // after)
        new.load_state_dict(old.state_dict())
        ranks.append(take(new, 27))
    for step in range(27):
        assert Counter(s for rank in ranks for s in rank[step]) == Counter(unbroken[13 + step])


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_set_epoch_goes_where_an_unbroken_run_would_be(epoch):
    """From the start, from ahead, and where the run stands there already."""
    for rank in range(2):
        unbroken = make(rank, 2, share=0.35)
        batches = [list(unbroken) for _ in range(5)]
        for before in (0, 2, epoch):
            sampler = make(rank, 2, share=0.35)
            for _ in range(before):
                list(sampler)
            sampler.set_epoch(epoch)
            assert list(sampler) == batches[epoch]


def test_set_epoch_of_a_long_run_takes_no_time():
    """Ten million samples of ten datasets."""
    sampler = MixtureBatchSampler([10**8] * 7, [10**7] * 3, batch_size=16, world_size=32, batches_per_epoch=100)
    sampler.set_epoch(200)
    assert sum(sampler.state_dict()["drawn"]) == sampler.state_dict()["samples"] == 200 * 100 * 512
    sampler.set_epoch(0)
    assert not any(sampler.state_dict()["drawn"])


def test_state_is_the_same_on_every_rank_and_survives_json():
    import json

    samplers = [make(rank, 3) for rank in range(3)]
    for sampler in samplers:
        take(sampler, 9)
    states = [sampler.state_dict() for sampler in samplers]
    assert states[0] == states[1] == states[2]
    again = make(1, 3)
    again.load_state_dict(json.loads(json.dumps(states[0])))
    assert take(again, 5) == take(samplers[1], 5)


def test_state_taken_in_the_middle_of_an_epoch_counts_what_was_handed_out():
    sampler = make()
    epoch = iter(sampler)
    seen = [next(epoch) for _ in range(5)]
    state = sampler.state_dict()
    rest = list(islice(epoch, 4))
    other = make()
    other.load_state_dict(state)
    assert take(other, 4) == rest
    assert seen + rest == take(make(), 9)


def test_state_of_other_data_is_refused():
    state = make().state_dict()
    other = MixtureBatchSampler([37, 12], CHATS, batch_size=4)
    with pytest.raises(
        ValueError, match=r"sizes was \[37, 11, 23, 5\], now \[37, 12, 23, 5\]; resume with the same data"
    ):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        make(seed=1).load_state_dict(state)


# ---------------------------------------------------------------- length, datasets, errors


def test_an_epoch_draws_as_many_robot_samples_as_there_are():
    for batch, world, share in ((4, 1, 0.0), (4, 2, 0.3), (3, 1, 0.35)):
        samplers = [make(rank, world, batch, share) for rank in range(world)]
        robots = sum(batch - chats_in(b) for sampler in samplers for b in sampler)
        assert len({len(sampler) for sampler in samplers}) == 1
        assert sum(ROBOTS) <= robots + 1
        assert robots < sum(ROBOTS) + batch * world + 1
    assert len(make(batches_per_epoch=7)) == len(list(make(batches_per_epoch=7))) == 7


def test_an_epoch_of_chats_alone_passes_over_them():
    sampler = MixtureBatchSampler([], CHATS, batch_size=4, multimodal_share=1.0)
    assert len(sampler) == 7
    assert len({sample for batch in sampler for sample in batch}) == 28


def test_dataset_takes_the_samplers_pairs():
    robots, chats = [[{"name": n} for n in names] for names in ("abc", "de")], [[{"name": n} for n in "xyz"]]
    data = MixtureDataset(robots, chats)
    assert len(data) == 8
    assert [data[pair] for pair in ((0, 2), (1, 0), (2, 1))] == [
        {"name": "c", "source": 0},
        {"name": "d", "source": 1},
        {"name": "y", "source": 2},
    ]
    sampler = MixtureBatchSampler(
        [len(d) for d in data.robot_datasets], [len(d) for d in data.multimodal_datasets], batch_size=2
    )
    assert {data[pair]["name"] for batch in take(sampler, 40) for pair in batch} == set("abcdexyz")


@pytest.mark.parametrize(
    ("sizes", "kwargs", "message"),
    [
        (([5], []), {"multimodal_share": 0.3}, "multimodal_share=0.3 needs multi-modal data"),
        (([5], [5]), {"multimodal_share": 1.2}, r"multimodal_share: expected a number in \[0, 1\], got 1.2"),
        (([], [5]), {}, "robot_sizes: expected at least one robot dataset"),
        (([5, 0], [5]), {}, r"dataset sizes: expected at least one sample each, got \[5, 0, 5\]"),
        (([5], [5]), {"rank": 2, "world_size": 2}, "rank=2 world_size=2"),
        (([5], [5]), {"batch_size": 0}, "batch_size=0"),
        (([5, 5], [5]), {"robot_weights": [1.0]}, "robot_weights: expected 2 non-negative numbers"),
        (([5, 5], [5]), {"robot_weights": [1.0, -1.0]}, "robot_weights: expected 2 non-negative numbers"),
        (([5], [5]), {"multimodal_weights": [0.0]}, "multimodal_weights: expected 1 non-negative numbers"),
    ],
)
def test_impossible_mixtures_are_named(sizes, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MixtureBatchSampler(*sizes, **{"batch_size": 4, **kwargs})
