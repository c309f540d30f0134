"""The verdict follows from the comparisons."""

import pytest

from syvla.evaluation.open_loop.errors import Comparison
from syvla.evaluation.open_loop.verdict import judge

BETTER, WORSE, UNCLEAR = (-0.5, -0.1), (0.1, 0.5), (-0.2, 0.2)


def one(name, interval, baseline=1.0, episodes=5):
    return Comparison(name, 0.5, baseline, interval, 3, episodes, 2)


@pytest.mark.parametrize(
    ("comparisons", "outcome", "text"),
    [
        (
            [one("hold", BETTER), one("nearest_state", BETTER, 0.8)],
            "learned",
            "0.62 of that of the best baseline, the nearest",
        ),
        (
            [one("hold", BETTER), one("nearest_state", UNCLEAR, 0.5)],
            "partly",
            "no better than the nearest training moment",
        ),
        (
            [one("hold", UNCLEAR), one("mean", WORSE), one("nearest_state", BETTER)],
            "not learned",
            "holding the position and",
        ),
        (
            [one("hold", UNCLEAR), one("mean", BETTER), one("nearest_state", BETTER)],
            "partly",
            "better than the mean action",
        ),
        ([one("hold", None, episodes=2)], "unclear", "Too few episodes to tell (2"),
    ],
)
def test_what_is_said(comparisons, outcome, text):
    verdict = judge(comparisons)
    assert verdict.outcome == outcome
    assert text in verdict.sentence


def test_episodes_that_were_trained_on_are_said_first():
    verdict = judge([one("hold", BETTER)], [3, 4])
    assert verdict.outcome == "unclear"
    assert verdict.sentence.startswith("Episodes 3, 4 were trained on")


def test_without_a_baseline_nothing_can_be_said():
    with pytest.raises(ValueError, match="at least one baseline"):
        judge([])
