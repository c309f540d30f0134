"""A policy of another control rate than its environment is refused or resampled, and the summary says which."""

import numpy as np
import pytest

from syvla.evaluation.closed_loop import build_parser, evaluate_closed_loop
from syvla.evaluation.control_rate import ResampledPolicy
from syvla.serving.contract.action_chunks import ActionChunks

DIMENSIONS = 14


class Ramp:
    """Step k is the number k in every dimension."""

    name, chunk_size = "ramp", 8

    def __init__(self, control_hz):
        self.control_hz = control_hz

    def identity(self):
        return {"policy": "ramp"}

    def predict(self, observations, instructions, *, seeds):
        steps = np.arange(self.chunk_size, dtype=np.float32)[None, :, None]
        return ActionChunks(np.tile(steps, (len(observations), 1, DIMENSIONS)))


def evaluate(policy, **arguments):
    options = {"image_size": 8, "max_steps": 3, **arguments.pop("environment_options", {})}
    return evaluate_closed_loop(policy, episodes=1, environment_options=options, progress=False, **arguments)


@pytest.mark.parametrize(
    ("policy_hz", "expected"),
    [
        (5.0, np.arange(15) / 2),  # half as fast: every second step lies between two of the policy's
        (20.0, [0, 2, 4, 6]),
        (15.0, [0, 1.5, 3, 4.5, 6]),
    ],
)
def test_targets_are_taken_at_the_environments_times(policy_hz, expected):
    policy = ResampledPolicy(Ramp(policy_hz), policy_hz, 10.0)
    chunk = policy.predict([None, None], ["", ""], seeds=[0, 1]).actions
    assert policy.chunk_size == len(expected)
    assert chunk.shape == (2, len(expected), DIMENSIONS)
    assert chunk.dtype == np.float32
    assert np.allclose(chunk, np.asarray(expected)[None, :, None], atol=1e-6)


def test_another_rate_is_refused_with_both_numbers_and_the_way_out():
    with pytest.raises(
        ValueError,
        match=r"ramp gives 5 actions per second, the environment executes 10: .*2 times as fast.*"
        r"--control-rate resample",
    ):
        evaluate(Ramp(5.0))


def test_resampling_stands_in_the_summary_and_parts_the_results():
    result = evaluate(Ramp(5.0), control_rate="resample")
    assert result.run["control_rate"] == {"policy_hz": 5.0, "environment_hz": 10.0, "resampled": True}
    assert result.settings["resampled_hz"] == [5.0, 10.0]
    assert result.settings["replan_steps"] == 15, "the whole chunk, in the environment's steps"
    same = evaluate(Ramp(10.0))
    assert same.run["control_rate"] == {"policy_hz": 10.0, "environment_hz": 10.0, "resampled": False}
    assert "resampled_hz" not in same.settings
    assert evaluate(Ramp(None)).run["control_rate"]["policy_hz"] is None


def test_moves_are_not_resampled():
    with pytest.raises(ValueError, match="cannot be resampled, since actions here are moves per step"):
        evaluate(Ramp(5.0), control_rate="resample", environment_options={"control": "ee_delta"})


def test_an_unknown_way_is_named_and_the_command_has_the_option():
    with pytest.raises(ValueError, match="control_rate: expected one of refuse, resample, got 'guess'"):
        evaluate(Ramp(5.0), control_rate="guess")
    assert build_parser().parse_args(["--model", "x", "--control-rate", "resample"]).control_rate == "resample"
