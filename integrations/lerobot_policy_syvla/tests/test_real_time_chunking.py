"""Chunks that continue each other: LeRobot's RTC engine and its synchronous loop, against independent computations."""

import math
import threading
import time

import numpy as np
import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc import RTCConfig, RTCProcessor
from lerobot.rollout.inference.rtc import RTCInferenceEngine, supports_rtc_inference
from lerobot_policy_syvla.chunk_continuation import without_padding
from lerobot_policy_syvla.processor_syvla import MODEL_INPUT_PREFIX
from lerobot_usage import CHUNK, make, observation, policy_config

from syvla.modeling_syvla.flow_matching import continuation_weights


@pytest.fixture
def parts(recording, syvla_checkpoint):
    def made(**fields):
        config = policy_config(syvla_checkpoint=str(syvla_checkpoint), embodiment="tabletop", **fields)
        return make(recording, config)

    return made


NOISE = torch.randn(1, CHUNK, 14, generator=torch.Generator().manual_seed(3))


def test_the_weights_are_the_published_ones():
    rtc = RTCConfig(prefix_attention_schedule=RTCAttentionSchedule.EXP)
    for delay, overlap in ((0, 5), (2, 6), (3, 8)):
        theirs = RTCProcessor(rtc).get_prefix_weights(delay, overlap, CHUNK)
        torch.testing.assert_close(theirs, continuation_weights(delay, overlap, CHUNK))


def test_a_chunk_continues_what_is_left_by_guidance_through_the_jacobian(parts):
    policy, pre, _, dataset = parts()
    policy.config.rtc_config = RTCConfig(
        prefix_attention_schedule=RTCAttentionSchedule.EXP, max_guidance_weight=5.0, execution_horizon=6
    )
    assert supports_rtc_inference(policy)
    batch = pre(observation(dataset, 4))
    left = torch.linspace(-1, 1, 6)[:, None].expand(6, 14).contiguous()
    got = policy.predict_action_chunk(batch, NOISE, inference_delay=2, prev_chunk_left_over=left)
    plain = policy.predict_action_chunk(batch, NOISE)

    target, weights = torch.zeros(1, CHUNK, 14), torch.zeros(CHUNK)  # the paper's equation 5, written out
    target[0, :6] = left
    for step in range(6):
        c = (6 - step) / (6 - 2 + 1)
        weights[step] = 1.0 if step < 2 else c * (math.exp(c) - 1) / (math.e - 1)
    inputs = {key[len(MODEL_INPUT_PREFIX) :]: v for key, v in batch.items() if key.startswith(MODEL_INPUT_PREFIX)}
    expected = policy.model.predict_actions(
        **inputs, noise=NOISE, continuation=(target, weights[None]), max_guidance_weight=5.0
    ).actions
    torch.testing.assert_close(got, expected[..., :14].float())
    away, near = ((chunk[0, :2] - left[:2]).abs().mean() for chunk in (plain, got))
    assert near < 0.5 * away


def test_padding_by_lerobot_is_not_continued(parts):
    left = torch.cat([torch.ones(3, 14), torch.zeros(7, 14)])
    assert without_padding(left[None]).shape == (1, 3, 14)
    assert without_padding(torch.zeros(1, 5, 14)).shape == (1, 0, 14)
    policy, pre, _, dataset = parts(seams="rtc_identity")
    policy.config.rtc_config = RTCConfig()
    batch = pre(observation(dataset, 4))
    short = policy.predict_action_chunk(batch, NOISE, inference_delay=1, prev_chunk_left_over=left[:3])
    padded = policy.predict_action_chunk(batch, NOISE, inference_delay=1, prev_chunk_left_over=left)
    torch.testing.assert_close(short, padded)
    torch.testing.assert_close(short[0, 0], left[0])  # weight 1: exactly what runs meanwhile
    nothing = policy.predict_action_chunk(batch, NOISE, prev_chunk_left_over=torch.zeros(10, 14))
    torch.testing.assert_close(nothing, policy.predict_action_chunk(batch, NOISE))


def test_what_runs_meanwhile_is_given_to_a_model_that_was_trained_for_it(parts):
    policy, pre, _, dataset = parts(seams="rtc_trained")
    batch = pre(observation(dataset, 4))
    left = torch.linspace(-1, 1, 6)[:, None].expand(6, 14).contiguous()
    with pytest.raises(ValueError, match="trained with simulated_delay above 0"):
        policy.predict_action_chunk(batch, NOISE, inference_delay=2, prev_chunk_left_over=left)
    policy.model.config.simulated_delay = 3
    got = policy.predict_action_chunk(batch, NOISE, inference_delay=2, prev_chunk_left_over=left)
    assert torch.equal(got[0, :2], left[:2])
    assert not torch.allclose(got[0, 2:], policy.predict_action_chunk(batch, NOISE)[0, 2:])


def chunks_in_turn(policy, *chunks):
    given = iter(chunks)
    policy._predicted = lambda batch, noise, options: next(given)


def test_the_synchronous_loop_blends_and_averages(parts):
    old, new = torch.zeros(1, CHUNK, 14), torch.ones(1, CHUNK, 14)
    policy, *_ = parts(n_action_steps=4, seams="blend", blend_steps=3)
    chunks_in_turn(policy, old, new)
    got = [policy.select_action({})[0, 0].item() for _ in range(8)]
    assert got == pytest.approx([0, 0, 0, 0, 0.25, 0.5, 0.75, 1])
    policy, *_ = parts(n_action_steps=2, seams="ensemble", ensemble_decay=0.5)
    chunks_in_turn(policy, old, new, 2 * new)
    got = [policy.select_action({})[0, 0].item() for _ in range(6)]
    w = np.exp(-0.5 * np.arange(3))
    two, three = w[1] / w[:2].sum(), (w[1] + 2 * w[2]) / w.sum()
    assert got == pytest.approx([0, 0, two, two, three, three])
    policy.reset()
    chunks_in_turn(policy, new)
    assert policy.select_action({})[0, 0].item() == 1, "a new episode knows no older chunk"


def test_the_synchronous_loop_continues_what_has_not_run(parts):
    policy, pre, _, dataset = parts(n_action_steps=3, seams="rtc_identity")
    batch = pre(observation(dataset, 4))
    asked = []
    original = policy.predict_action_chunk

    def noted(batch, **kwargs):
        asked.append(kwargs.get("prev_chunk_left_over"))
        return original(batch, noise=NOISE, **kwargs)

    policy.predict_action_chunk = noted
    actions = [policy.select_action(batch) for _ in range(4)]
    assert asked[0] is None
    assert asked[1].shape == (1, CHUNK - 3, 14)
    assert len(actions) == 4
    plain = original(batch, NOISE)
    torch.testing.assert_close(asked[1], plain[:, 3:])


def test_blending_with_what_the_engine_passes(parts):
    policy, *_ = parts(seams="blend", blend_steps=1)
    chunks_in_turn(policy, torch.ones(1, CHUNK, 14))
    got = policy.predict_action_chunk({}, inference_delay=2, prev_chunk_left_over=torch.full((5, 14), 3.0))
    assert got[0, :, 0].tolist() == [1, 1, 2, 1, 1, 1, 1, 1]


def test_settings_that_cannot_be_had_are_refused(parts):
    with pytest.raises(ValueError, match="seams: expected one of switch"):
        parts(seams="smooth")
    with pytest.raises(ValueError, match="blend_steps: belongs to seams='blend'"):
        parts(blend_steps=3)
    policy, *_ = parts(seams="ensemble")
    with pytest.raises(ValueError, match=r"it needs n_action_steps below chunk_size=8, got 8"):
        policy.select_action({})
    with pytest.raises(ValueError, match="passes the last one alone"):
        policy.predict_action_chunk({}, prev_chunk_left_over=torch.ones(3, 14))


class Robot:
    """What LeRobot's engine asks of a robot."""

    robot_type = "tabletop"
    action_features = {}


def test_lerobots_engine_runs_the_policy_with_the_delay_it_measured(parts):
    """LeRobot's own RTC engine, in its own thread; the policy continues the engine's queue."""
    policy, pre, post, dataset = parts()
    rtc = RTCConfig(execution_horizon=6, max_guidance_weight=5.0)
    policy.config.rtc_config = rtc
    item = dataset[4]
    names = list(dataset.meta.features["observation.state"]["names"])
    features = {key: feature for key, feature in dataset.meta.features.items() if key.startswith("observation.")}
    frame = {name: float(value) for name, value in zip(names, item["observation.state"], strict=True)}
    for key in dataset.meta.camera_keys:
        picture = (item[key].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        frame[key.removeprefix("observation.images.")] = picture
    asked = []
    original = policy.predict_action_chunk

    def noted(batch, *, inference_delay, prev_chunk_left_over):
        asked.append((inference_delay, prev_chunk_left_over))
        return original(batch, inference_delay=inference_delay, prev_chunk_left_over=prev_chunk_left_over)

    policy.predict_action_chunk = noted
    stop = threading.Event()
    engine = RTCInferenceEngine(
        policy, pre, post, Robot(), rtc, features, item["task"], fps=10.0, device="cpu", rtc_queue_threshold=5,
        shutdown_event=stop,
    )  # fmt: skip
    engine.start()
    engine.notify_observation(frame)
    engine.resume()
    deadline = time.monotonic() + 120
    actions = []
    try:
        while len(asked) < 3 and time.monotonic() < deadline and not engine.failed:
            action = engine.get_action(None)
            if action is None:
                time.sleep(0.01)
            else:
                actions.append(action)
    finally:
        engine.stop()
    assert not engine.failed
    assert len(asked) >= 3
    assert asked[0] == (0, None)
    delays, left = zip(*asked[1:], strict=True)
    assert all(delay >= 1 for delay in delays), "the engine measured how long an answer takes"
    assert all(rest is None or rest.shape == (6, 14) for rest in left)
    assert all(torch.isfinite(action).all() and action.shape == (14,) for action in actions)
