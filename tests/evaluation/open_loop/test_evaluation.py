"""A real tiny policy: what is compared is what the model says, whatever the batch, and numbers are plain numpy's."""

import numpy as np
import pytest
import torch

from syvla.evaluation.open_loop.evaluation import evaluate_open_loop, measure_open_loop
from syvla.evaluation.open_loop.moments import Moments
from syvla.evaluation.open_loop.prediction import noise_seed, predict
from syvla.modeling_syvla import SyVLAModel
from syvla.processing import SyVLAProcessor
from syvla.serving.policies.in_process import SyVLAPolicy


@pytest.fixture(scope="module")
def policy(arm_checkpoint):
    model, processor = SyVLAModel.from_pretrained(arm_checkpoint), SyVLAProcessor.from_pretrained(arm_checkpoint)
    return SyVLAPolicy(model, processor, "arm", {"center": "center"})


def test_predictions_are_the_models_own(policy, open_arm):
    dataset = open_arm([2, 4])
    moments = Moments.of(dataset, stride=3)
    found = predict(policy, dataset, moments, draws=2, seed=5, batch_size=4, progress=False)
    assert found.actions.shape == (2, len(moments), 4, 2)
    assert found.thoughts is None
    for row in (0, len(moments) - 1):
        item = dataset[int(moments.indices[row])]
        asked = {key: item[key] for key in ("images", "text", "state", "embodiment")}
        seed = noise_seed(5, int(moments.episodes[row]), int(moments.frames[row]), 1)
        noise = torch.randn((1, 4, 2), generator=torch.Generator().manual_seed(seed))
        answer = policy.model.predict_actions(**policy.processor.collate([asked]), noise=noise)
        by_hand = policy.processor.decode_actions(answer.actions[0], "arm", item["state"])
        np.testing.assert_allclose(found.actions[1, row], by_hand, atol=1e-5)


def test_batches_change_nothing_and_draws_differ(policy, open_arm):
    dataset = open_arm([2])
    moments = Moments.of(dataset, stride=3)
    many, single = (predict(policy, dataset, moments, draws=2, batch_size=b, progress=False).actions for b in (3, 1))
    np.testing.assert_allclose(many, single, atol=1e-5)
    assert np.abs(many[0] - many[1]).max() > 1e-3
    with pytest.raises(ValueError, match="draws >= 1"):
        predict(policy, dataset, moments, draws=0)


def test_the_result_is_what_numpy_says(policy, open_arm):
    held, training = open_arm([1, 2, 4]), open_arm([0, 3])
    result = evaluate_open_loop(policy, held, training, stride=2, draws=3, neighbor_images=10, progress=False)
    moments, predicted = result.moments, result.predictions.actions
    mask = np.broadcast_to(moments.real, predicted.shape[:3])
    absolute = np.abs(predicted - moments.actions)
    report = result.to_dict()
    for i, name in enumerate(("gripper", "x")):
        entry = report["dimensions"][i]
        assert (entry["name"], entry["unit"]) == (name, ("m", "rad")[i])
        assert entry["mean_absolute_error"]["policy"] == pytest.approx(absolute[..., i][mask].mean(), rel=1e-5)
        held_at = moments.states[:, {"gripper": 2, "x": 0}[name]]
        error = np.abs(held_at[:, None] - moments.actions[..., i])[moments.real].mean()
        assert entry["mean_absolute_error"]["hold"] == pytest.approx(error, rel=1e-5)
    spread = training.actions.std(0)
    by_name = {one["baseline"]: one for one in report["comparisons"]}
    assert set(by_name) == {"hold", "mean", "nearest_state", "nearest_images"}
    assert by_name["mean"]["policy_score"] == pytest.approx((absolute / spread)[mask].mean(), rel=1e-5)
    constant = np.abs(training.actions.mean(0) - moments.actions) / spread
    assert by_name["mean"]["baseline_score"] == pytest.approx(constant[moments.real].mean(), rel=1e-5)
    assert report["by_step"]["compared_chunks"] == moments.real.sum(0).tolist()
    third = absolute[:, moments.real[:, 2], 2].mean((0, 1))
    np.testing.assert_allclose(report["by_step"]["mean_absolute_error"]["policy"][2], third, rtol=1e-5)
    worst = result.worst(2, apart=3)
    assert worst[0] == int(result.scores.argmax())


def test_numbers_for_a_tracker_leave_random_generators_alone(policy, open_arm):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    numbers = measure_open_loop(policy.model, policy.processor, open_arm([1, 2, 4]), moments=6)
    assert torch.equal(before, torch.get_rng_state())
    assert (np.random.get_state()[1] == numpy_before).all()
    assert set(numbers) == {"error", "hold", "mean", "ratio", "spread", "mae/gripper", "mae/x"}
    assert all(type(value) is float and np.isfinite(value) for value in numbers.values())
    assert numbers["ratio"] == pytest.approx(numbers["error"] / min(numbers["hold"], numbers["mean"]), rel=0.2)


def test_a_policy_that_predicts_the_recording_has_no_error(policy, open_arm, monkeypatch):
    """The policy's own path with the last step, the flow, replaced by the recording."""
    dataset, training = open_arm([1, 2, 4]), open_arm([0, 3])
    answers = {}
    for index in range(len(dataset)):
        item = dataset[index]
        answers[item["state"].tobytes()] = item["actions"]

    def recorded(inputs, intention, *, seeds):
        return np.stack([answers[np.asarray(state, np.float32).tobytes()] for state in inputs.states])

    monkeypatch.setattr(policy, "denoise", recorded)
    result = evaluate_open_loop(policy, dataset, training, stride=2, draws=2, neighbor_images=0, progress=False)
    assert result.errors["policy"].by_dimension().tolist() == [0.0, 0.0]
    assert result.verdict.outcome == "learned"
