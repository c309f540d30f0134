"""The order within few files: every sample once per pass, few files at a time, the same everywhere."""

import numpy as np
import pytest

from syvla.processing.file_order import FileOrder
from syvla.processing.mixture import MixtureBatchSampler

RUNS = [5, 1, 7, 3, 4, 6, 2, 9]
RUN_OF = np.repeat(np.arange(len(RUNS)), RUNS)


@pytest.mark.parametrize("window", [1, 2, 3, 8, 100])
def test_every_sample_comes_once_per_pass_and_a_window_holds_few_runs(window):
    order, total = FileOrder(RUNS, window), sum(RUNS)
    for number in range(3):
        indices = order.indices(np.arange(total), (0, 0, number))
        assert sorted(indices.tolist()) == list(range(total))
        spans = [np.flatnonzero(RUN_OF[indices] == run) for run in range(len(RUNS))]
        open_at_once = [sum(span[0] <= place <= span[-1] for span in spans) for place in range(total)]
        assert max(open_at_once) <= window
    one, other = (order.indices(np.arange(total), (0, 0, number)).tolist() for number in (0, 1))
    assert one != other, "passes differ"
    assert one != list(range(total))


def test_positions_can_be_asked_for_in_any_order_and_number():
    order = FileOrder(RUNS, 3)
    whole = order.indices(np.arange(sum(RUNS)), (4, 0, 2))
    asked = np.array([36, 0, 17, 5, 5])
    assert order.indices(asked, (4, 0, 2)).tolist() == whole[asked].tolist()


@pytest.mark.parametrize("window", [0, -1, 1.5, True, "8"])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(ValueError, match=r"shuffle_files: expected a number of runs of files of at least 1, got"):
        FileOrder(RUNS, window)


def test_the_mixture_uses_it_for_its_dataset_alone_and_resumes_exactly():
    sizes, settings = [sum(RUNS), 50], {"batch_size": 4, "multimodal_share": 0.0, "seed": 5, "with_pass": True}

    def sampler(orders=None):
        return MixtureBatchSampler(sizes, orders=orders, **settings)

    plain, ordered = list(sampler()), list(sampler({0: FileOrder(RUNS, 2)}))
    assert [[s for s, *_ in batch] for batch in plain] == [[s for s, *_ in batch] for batch in ordered]
    of_second = [[sample for batch in batches for sample in batch if sample[0] == 1] for batches in (plain, ordered)]
    assert of_second[0] == of_second[1], "the other dataset's order stays"
    first = [index for batch in ordered for source, index, number in batch if source == 0 and number == 0]
    assert len(set(first)) == len(first) == sizes[0]
    started = sampler({0: FileOrder(RUNS, 2)})
    iterator = iter(started)
    for _ in range(7):
        next(iterator)
    resumed = sampler({0: FileOrder(RUNS, 2)})
    resumed.load_state_dict(started.state_dict())
    assert next(iter(resumed)) == next(iterator) == ordered[7]
