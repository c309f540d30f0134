"""Real-time chunking as published: against the paper's equations with a Jacobian by hand, and inside the model."""

import numpy as np
import pytest
import torch

from syvla.modeling_syvla.expert_inputs import ExpertObservation
from syvla.modeling_syvla.flow_matching import continuation_weights, euler_sample
from syvla.modeling_syvla.flow_solver import FlowSolver
from syvla.modeling_syvla.guided_flow import guided_sample

BETA = 5.0
WIDTH = 14


def observation(model, batch: int):
    """Random query states, observation and noise, for `sample_actions`."""
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, 8, model.config.get_text_config().hidden_size), (batch, WIDTH), (batch, 3, 3, 32, 32)
    states, state, pixels = (torch.randn(shape, generator=generator) for shape in shapes)
    seen = ExpertObservation(
        state, torch.zeros(batch, dtype=torch.int64), pixels, torch.ones(batch, 3, dtype=torch.bool)
    )
    return {
        "query_states": states,
        "observation": seen,
        "noise": torch.randn(batch, 8, WIDTH, generator=generator),
    }


def by_hand(matrix, noise, target, weights, steps, beta):
    """Equations 2 to 4 of arXiv 2506.07339 in numpy for a flow v(x, t) = tanh(M x) (1 + t), whose Jacobian is known."""
    x = noise.astype(np.float64)
    for step in range(steps):
        t = step / steps
        inner = np.tanh(matrix @ x)
        velocity = inner * (1 + t)
        jacobian = np.eye(len(x)) + (1 - t) * (1 + t) * (1 - inner**2)[:, None] * matrix
        end = x + (1 - t) * velocity
        r2 = (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
        weight = beta if t == 0 else min(beta, (1 - t) / (t * r2))
        x = x + (velocity + weight * (weights * (target - end)) @ jacobian) / steps
    return x


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
@pytest.mark.parametrize("beta", [0.5, 5.0])
def test_guidance_is_that_of_the_paper(steps, beta):
    rng = np.random.default_rng(steps)
    horizon, width = 6, 3
    matrix = rng.normal(size=(horizon * width,) * 2) / 6  # every step of the chunk moves every other one
    noise, target = rng.normal(size=(2, horizon * width))
    weights = np.repeat(continuation_weights(2, 4, horizon).numpy().astype(np.float64), width)
    expected = by_hand(matrix, noise, target, weights, steps, beta)

    def velocity(x, t):
        return torch.tanh(x.reshape(1, -1) @ torch.tensor(matrix).T).reshape(x.shape) * (1 + t)

    shaped = [torch.tensor(part).reshape(1, horizon, width) for part in (noise, target, weights)]
    with torch.inference_mode(False), torch.no_grad():
        got = guided_sample(velocity, shaped[0], FlowSolver(steps), (shaped[1], shaped[2]), beta)
    np.testing.assert_allclose(got.reshape(-1), expected, rtol=1e-6)


def test_free_steps_follow_where_the_identity_form_leaves_them():
    """Step 1 is bound, step 2 is free, and the flow ties them: only the Jacobian tells step 2 that it can help step 1."""
    noise, target = torch.zeros(1, 2, 1), torch.ones(1, 2, 1)
    weights = torch.tensor([1.0, 0.0]).reshape(1, 2, 1)

    def velocity(x, t):
        return x.flip(1)

    plain = euler_sample(velocity, noise, 1, (target, weights))
    guided = guided_sample(velocity, noise, FlowSolver(1), (target, weights), 1.0)
    assert plain.flatten().tolist() == [1.0, 0.0]
    assert guided.flatten().tolist() == [1.0, 1.0]  # J = [[1, 1], [1, 1]]


def test_without_weight_the_model_s_chunk_is_the_free_one_and_with_weight_it_comes_closer(tiny_model):
    given = observation(tiny_model, 2)
    free = tiny_model.sample_actions(**given, num_steps=5)
    target = free + torch.randn(2, 8, WIDTH, generator=torch.Generator().manual_seed(3))
    target[1] = 0.0
    weights = torch.stack([continuation_weights(3, 6, 8), torch.zeros(8)])
    got = tiny_model.sample_actions(**given, num_steps=5, continuation=(target, weights), max_guidance_weight=BETA)
    torch.testing.assert_close(got[1], free[1], atol=1e-5, rtol=0)
    before, after = ((part - target)[0, :3].abs().mean() for part in (free, got))
    assert after < 0.6 * before
    assert not got.requires_grad
    assert all(p.grad is None for p in tiny_model.parameters())


@pytest.mark.parametrize("onednn", [False, True])
def test_an_optimized_model_is_guided_alike(make_model, onednn):
    model = make_model()
    given = observation(model, 1)
    options = {"continuation": (torch.zeros(1, 8, WIDTH), torch.rand(1, 8)), "max_guidance_weight": BETA}
    expected = model.sample_actions(**given, num_steps=3, **options)
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("oneDNN is missing")
    model.optimize_for_inference(onednn=onednn)
    torch.testing.assert_close(model.sample_actions(**given, num_steps=3, **options), expected, atol=1e-4, rtol=0)


def test_guidance_without_effect_is_refused(make_model, tiny_model):
    given = observation(tiny_model, 1)
    continuation = (torch.zeros(1, 8, WIDTH), torch.ones(1, 8))
    with pytest.raises(ValueError, match="max_guidance_weight: expected together with continuation"):
        tiny_model.sample_actions(**given, max_guidance_weight=BETA)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_guidance_weight: expected a positive number"):
            tiny_model.sample_actions(**given, continuation=continuation, max_guidance_weight=weight)
    regression = make_model(action_head="l1_regression")
    with pytest.raises(ValueError, match="expected a flow to guide"):
        regression.sample_actions(**given, continuation=continuation, max_guidance_weight=BETA)
