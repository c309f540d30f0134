"""Probes and mask statistics on states whose contents are known."""

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

from benchmarks.decoupling_study_language import TARGETS, requests
from benchmarks.decoupling_study_mechanism import agreement, kept_states, mask_statistics
from benchmarks.decoupling_study_probe import Probe, accuracies, probes, split

RNG = np.random.default_rng(0)


def states_with(labels, carrier, states=4, width=24):
    """States of which one alone carries the label, as a direction of its own beside noise."""
    found = 0.3 * RNG.standard_normal((len(labels), states, width))
    found[:, carrier] += 2 * np.eye(width)[labels]
    return found


def test_a_probe_reads_what_is_linear_and_only_that():
    labels = RNG.integers(5, size=400)
    features = states_with(labels, 0)[:, 0]
    assert (Probe(features[:300], labels[:300])(features[300:]) == labels[300:]).mean() > 0.98
    assert (Probe(features[:300], RNG.permutation(labels[:300]))(features[300:]) == labels[300:]).mean() < 0.4


def test_masking_the_carrier_shows_in_every_figure():
    labels, tested = RNG.integers(5, size=1200), np.arange(1200) % 3 == 0
    states = states_with(labels, carrier=2)
    kept = np.ones((1200, 4), bool)
    kept[:, 2] = False
    found = accuracies(states, kept, labels, tested)
    assert found["each"][2] > 0.98
    assert max(found["each"][i] for i in (0, 1, 3)) < 0.35
    assert found["each_masked"][2] == pytest.approx(found["chance"], abs=0.05)
    assert found["each_masked"][0] == found["each"][0]
    assert found["all"] > 0.98
    assert found["all_masked"] < 0.35
    assert found["of_masked"] == found["each"][2]
    assert found["of_kept"] < 0.35
    other = np.roll(kept, 1, axis=1)  # the mask takes a state that carries nothing
    assert accuracies(states, other, labels, tested)["all_masked"] > 0.98
    whole = accuracies(states, np.ones_like(kept), labels, tested)
    assert whole["of_masked"] is None
    assert whole["each"] == whole["each_masked"]


def test_probes_are_tested_on_other_expressions():
    asked = [request for target in range(len(TARGETS)) for request in requests(target)]
    tested = split(asked)
    groups = {
        which: {(r.target, r.group) for r, own in zip(asked, tested, strict=True) if own == which} for which in (0, 1)
    }
    assert not groups[0] & groups[1]
    assert {target for target, _ in groups[0]} == {target for target, _ in groups[1]} == set(range(len(TARGETS)))
    targets = np.array([request.target for request in asked])
    places = RNG.integers(3, size=len(asked))
    things = [
        [(target + k) % 22 for k in range(-place, 3 - place)] for target, place in zip(targets, places, strict=True)
    ]
    kept = np.ones((2, len(asked), 1, 4), bool)
    found = probes(asked, things, states_with(targets, 1), kept)
    assert found["name"]["each"][1] > 0.95
    assert max(found["place"]["each"]) < 0.5
    assert probes(asked, things, states_with(places, 0), kept)["place"]["each"][0] > 0.95
    numbers = np.maximum([request.residue for request in asked], 0)
    assert probes(asked, things, states_with(numbers, 3), kept[:1])["number"]["each"][3] > 0.9


def test_nothing_to_read_is_no_accuracy():
    assert accuracies(np.ones((4, 2, 3)), np.ones((4, 2), bool), np.full(4, -1), np.arange(4) > 2) == {}


def test_agreement_of_masks():
    masks = np.array([[[1, 0, 0, 0]], [[1, 0, 0, 0]], [[0, 1, 0, 0]]], bool)
    assert agreement(masks[:2]) == 1.0
    assert agreement(masks[1:]) == 0.0
    assert agreement(masks) == pytest.approx(1 / 3)
    assert agreement(np.array([[[1, 1, 0]], [[0, 1, 1]]], bool)) == pytest.approx(1 / 3)
    assert agreement(np.zeros((3, 1, 4), bool)) == 1.0, "nothing masked is the same mask"


def test_statistics_of_masks_from_known_norms():
    draws, samples, frames, states = 2, 30, 3, 10
    norms = np.tile(np.arange(1.0, states + 1), (draws, samples, frames, 1))
    norms *= RNG.random((draws, samples, frames, 1)) + 0.5  # a sample's own scale tells nothing
    found = mask_statistics(norms, 0.05)
    assert found["share"] == [1.0] + [0.0] * 9
    assert [found[f"agree_{kind}"] for kind in ("draws", "frames", "samples")] == [1.0] * 3
    assert found["chance"] == pytest.approx(0.1, abs=0.05)
    assert found["norms"] == found["sorted_norms"] == pytest.approx((np.arange(1, 11) / 5.5).round(4).tolist())
    assert (found["deciles"][0], found["deciles"][-1]) == (0.1818, 1.8182)
    assert (~kept_states(norms, 0.2)).sum(-1).min() == 2
    frame = np.ones((draws, samples, frames, states))
    for number in range(frames):
        frame[:, :, number, number] = 0.1
    found = mask_statistics(frame, 0.05)
    assert (found["agree_draws"], found["agree_frames"], found["agree_samples"]) == (1.0, 0.0, 1.0)
    assert found["share"][:3] == [0.3333] * 3
