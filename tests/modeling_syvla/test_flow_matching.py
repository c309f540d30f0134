"""Flow matching: path, time distribution, masked loss, Euler sampler."""

import math

import numpy as np
import pytest
import torch

from syvla.modeling_syvla.flow_matching import (
    continuation_weights,
    euler_sample,
    flow_matching_loss,
    interpolate,
    sample_timesteps,
    target_velocity,
)


@pytest.fixture
def chunk():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 5, 4, generator=generator), torch.randn(3, 5, 4, generator=generator)


def test_path_runs_straight_from_noise_to_action(chunk):
    noise, actions = chunk
    ends = [interpolate(noise, actions, torch.full((3,), t)) for t in (0.0, 1.0)]
    torch.testing.assert_close(ends, [noise, actions])
    t = torch.tensor([0.1, 0.5, 0.9], requires_grad=True)
    slope = torch.autograd.functional.jvp(lambda x: interpolate(noise, actions, x), t, torch.ones(3))[1]
    torch.testing.assert_close(slope, target_velocity(noise, actions))


@pytest.mark.parametrize("steps", [1, 2, 10, 33])
def test_euler_with_the_exact_velocity_recovers_the_actions(chunk, steps):
    noise, actions = chunk
    times = []

    def velocity(x, t):
        times.append(t[0].item())
        torch.testing.assert_close(x, interpolate(noise, actions, t))  # the sampler is on the path at the time it says
        return actions - noise

    torch.testing.assert_close(euler_sample(velocity, noise, steps), actions)
    np.testing.assert_allclose(times, np.arange(steps) / steps, atol=1e-7)


def test_euler_converges_on_a_curved_flow():
    """dx/dt = x has the solution e at t = 1; Euler's is (1 + 1/n)^n."""
    start = torch.ones(1, 1, 1, dtype=torch.float64)
    for steps in (1, 10, 100):
        got = euler_sample(lambda x, t: x, start, steps).item()
        assert got == pytest.approx((1 + 1 / steps) ** steps)


def test_euler_leaves_the_noise_alone_and_needs_a_step(chunk):
    noise, actions = chunk
    before = noise.clone()
    euler_sample(lambda x, t: actions - noise, noise, 3)
    assert torch.equal(noise, before)
    with pytest.raises(ValueError, match="num_steps: expected at least 1 flow step, got 0"):
        euler_sample(lambda x, t: x, noise, 0)


@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 1.0), (1.0, 1.0), (2.0, 3.0)])
@pytest.mark.parametrize("seeded", [True, False])
def test_times_follow_the_beta_distribution(alpha, beta, seeded):
    """t = time_max (1 - u), u ~ Beta(a, b): mean and variance from the closed form, range [0, time_max]."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0) if seeded else None
    count, top = 200_000, 0.999
    t = sample_timesteps(count, alpha, beta, top, torch.device("cpu"), generator)
    assert t.dtype == torch.float32
    assert t.shape == (count,)
    assert 0 <= t.min() < 0.05
    assert top - 0.05 < t.max() <= top
    total = alpha + beta
    variance = alpha * beta / (total**2 * (total + 1))
    assert t.mean().item() == pytest.approx(top * (1 - alpha / total), abs=5 * (variance / count) ** 0.5)
    assert t.var().item() == pytest.approx(top**2 * variance, rel=0.02)


def test_default_times_have_the_cumulative_distribution_of_pi0():
    """P(t < x) = 1 - (1 - x / 0.999)^1.5, since Beta(1.5, 1) has the CDF u^1.5: noisy times are more frequent."""
    t = sample_timesteps(200_000, 1.5, 1.0, 0.999, torch.device("cpu"), torch.Generator().manual_seed(1))
    for x in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert (t < x).float().mean().item() == pytest.approx(1 - (1 - x / 0.999) ** 1.5, abs=0.005)


def test_a_generator_makes_times_reproducible():
    for beta in (1.0, 2.0):
        draws = [
            sample_timesteps(9, 1.5, beta, 0.999, torch.device("cpu"), torch.Generator().manual_seed(s))
            for s in (1, 1, 2)
        ]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])


def test_loss_averages_each_sample_over_its_own_valid_entries(chunk):
    noise, actions = chunk
    mask = torch.zeros(3, 5, 4, dtype=torch.bool)
    mask[0] = True
    mask[1, :2, :3] = True
    velocity = torch.full((3, 5, 4), 0.25)
    loss = flow_matching_loss(velocity, noise, actions, mask)
    error = (0.25 - (actions - noise)).numpy() ** 2
    np.testing.assert_allclose(loss, [error[0].mean(), error[1, :2, :3].mean(), 0.0], rtol=1e-5)
    assert flow_matching_loss(actions - noise, noise, actions, mask).eq(0).all()


def test_masked_entries_reach_neither_loss_nor_gradient_even_as_nan(chunk):
    noise, actions = chunk
    mask = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    velocity = torch.zeros(3, 5, 4, requires_grad=True)
    clean = flow_matching_loss(velocity, noise, actions, mask).sum()
    (expected,) = torch.autograd.grad(clean, velocity)
    broken = [x.masked_fill(~mask, torch.nan) for x in (noise, actions)]
    loss = flow_matching_loss(velocity, *broken, mask).sum()
    (got,) = torch.autograd.grad(loss, velocity)
    assert torch.equal(loss, clean)
    assert torch.equal(got, expected)
    assert got[~mask].eq(0).all()


def test_loss_is_computed_in_float32(chunk):
    noise, actions = (x.bfloat16() for x in chunk)
    assert flow_matching_loss(noise, noise, actions, torch.ones(3, 5, 4, dtype=torch.bool)).dtype == torch.float32


def test_a_continued_chunk_ends_where_it_is_bound_and_flows_where_it_is_free():
    noise, target = torch.randn(2, 6, 3), torch.randn(2, 6, 3)
    weights = torch.tensor([1.0, 1.0, 0.4, 0.0, 0.0, 0.0])[None, :, None].expand(2, -1, 1)

    def velocity(x, t):
        return (2 * x.roll(1, dims=-1) - x) * (1 + t[:, None, None])  # each step by itself

    free = euler_sample(velocity, noise, 7)
    bound = euler_sample(velocity, noise, 7, (target, weights))
    torch.testing.assert_close(bound[:, :2], target[:, :2])
    torch.testing.assert_close(bound[:, 3:], free[:, 3:])
    assert (bound - target)[:, 2].abs().max() < (free - target)[:, 2].abs().max()


def test_one_step_blends_the_predicted_end_with_the_continued_actions():
    noise, target, end = torch.randn(1, 4, 2), torch.randn(1, 4, 2), torch.randn(1, 4, 2)
    weights = torch.rand(1, 4, 1)
    result = euler_sample(lambda x, t: end - x, noise, 1, (target, weights))
    torch.testing.assert_close(result, (1 - weights) * end + weights * target)


def test_continuation_weights_are_those_of_real_time_chunking():
    weights = continuation_weights(2, 5, 8)
    decay = [(5 - step) / (5 - 2 + 1) for step in (2, 3, 4)]
    expected = [c * (math.e**c - 1) / (math.e - 1) for c in decay]
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, *expected, 0.0, 0.0, 0.0]))
    assert continuation_weights(8, 8, 8).tolist() == [1.0] * 8
    assert continuation_weights(0, 0, 8).tolist() == [0.0] * 8
    with pytest.raises(ValueError, match="delay=6 overlap=5"):
        continuation_weights(6, 5, 8)
