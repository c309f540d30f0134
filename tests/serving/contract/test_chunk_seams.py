"""Modes of the seam: their arithmetic against an independent computation, and what is refused."""

import numpy as np
import pytest
import torch

from syvla.serving.contract.answer_delay import DelayEstimate, MeasuredDelay
from syvla.serving.contract.chunk_seams import ChunkOverlap, Seams


def run(seams, chunks, replan):
    """Commands of a robot that enters every chunk at its first step and executes `replan` actions of it."""
    overlap, commands = ChunkOverlap(seams), []
    for number, chunk in enumerate(chunks):
        if number:
            overlap.replaced(chunks[number - 1][replan:])
        for action in chunk[:replan]:
            commands.append(overlap.command(action))
            overlap.advance()
    return np.stack([np.asarray(command) for command in commands])


def act_ensemble(chunks, replan, decay):
    """Temporal ensembling as in the ACT paper: a table of every prediction for every step, averaged by column."""
    count, length, width = np.shape(chunks)
    table = np.full((count, count * replan + length, width), np.nan)
    for number, chunk in enumerate(chunks):
        table[number, number * replan : number * replan + length] = chunk
    commands = []
    for step in range(count * replan):
        known = table[: step // replan + 1, step]
        known = known[~np.isnan(known).any(1)]
        weights = np.exp(-decay * np.arange(len(known)))
        commands.append((known * (weights / weights.sum())[:, None]).sum(0))
    return np.stack(commands)


@pytest.mark.parametrize("replan", [1, 3])
@pytest.mark.parametrize("decay", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_ensembling_is_that_of_act(replan, decay, kind):
    chunks = np.random.default_rng(0).normal(size=(9, 7, 2))
    got = run(Seams("ensemble", decay=decay), [kind(chunk) for chunk in chunks], replan)
    np.testing.assert_allclose(got, act_ensemble(chunks, replan, decay), rtol=1e-12)


def test_blending_goes_over_linearly():
    old, new = np.zeros((8, 1)), np.full((8, 1), 10.0)
    got = run(Seams("blend", blend_steps=4), [old, new], 3)[:, 0]
    np.testing.assert_allclose(got, [0, 0, 0, 2, 4, 6])
    short = run(Seams("blend", blend_steps=4), [old[:4], new], 3)[:, 0]
    np.testing.assert_allclose(short, [0, 0, 0, 5, 10, 10])  # one action of the old chunk is left


def test_a_switch_passes_actions_on_as_they_are():
    overlap, action = ChunkOverlap(Seams()), np.ones(2)
    overlap.replaced(np.zeros((3, 2)))
    assert overlap.command(action) is action


def test_chunks_that_are_too_old_have_no_say():
    overlap = ChunkOverlap(Seams("ensemble", decay=0.0))
    overlap.replaced(np.zeros((3, 1)), time=1.0)
    overlap.replaced(np.full((3, 1), 4.0), time=2.0)
    assert overlap.command(np.array([8.0])) == 4.0
    overlap.forget_before(1.5)
    assert overlap.command(np.array([8.0])) == 6.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mode": "smooth"},
            "seams: expected one of switch, blend, ensemble, rtc, rtc_identity, rtc_trained, got 'smooth'",
        ),
        ({"mode": "switch", "blend_steps": 3}, "blend_steps: belongs to seams='blend'"),
        ({"mode": "rtc_identity", "max_guidance_weight": 5.0}, "max_guidance_weight: belongs to seams='rtc'"),
        ({"mode": "blend", "decay": 0.1}, "decay: belongs to seams='ensemble'"),
        ({"mode": "blend", "blend_steps": 0}, "blend_steps: expected at least 1"),
        ({"mode": "ensemble", "decay": -1.0}, "decay: expected a number from 0"),
        ({"mode": "rtc", "max_guidance_weight": float("nan")}, "max_guidance_weight: expected a number above 0"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Seams(**options)


def test_the_delay_is_a_running_quantile_within_its_bound():
    estimate = DelayEstimate(MeasuredDelay(most=6, quantile=0.8, window=5, initial=2))
    assert estimate.steps == 2
    seen, rng = [], np.random.default_rng(0)
    for steps in rng.integers(0, 9, 40).tolist():
        estimate.add(steps)
        seen.append(steps)
        expected = np.quantile(seen[-5:], 0.8, method="inverted_cdf")
        assert estimate.steps == min(6, expected)
    largest = DelayEstimate(MeasuredDelay(most=9, window=2))
    for steps, expected in ((3, 3), (1, 3), (0, 1), (12, 9)):
        largest.add(steps)
        assert largest.steps == expected


@pytest.mark.parametrize("options", [{"most": 0}, {"most": 3, "initial": 4}, {"most": 3, "quantile": 0.0}])
def test_an_impossible_delay_is_refused(options):
    with pytest.raises(ValueError, match="prefetch: expected"):
        MeasuredDelay(**options)


def test_requests_say_how_a_chunk_shall_be_continued():
    told = {mode: Seams.of(mode).request_options for mode in ("switch", "rtc", "rtc_identity", "rtc_trained")}
    weight, known = {"max_guidance_weight": 5.0}, {"known_actions": True}
    assert told == {"switch": {}, "rtc": weight, "rtc_identity": {}, "rtc_trained": known}
    assert [mode for mode in told if Seams.of(mode).asks_policy] == ["rtc", "rtc_identity", "rtc_trained"]
