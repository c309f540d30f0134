"""The clipped objectives by their definitions, and their bounds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syvla.training.rl.losses import approximate_kl, bounded_negatives_loss, clamp_through, policy_loss, value_loss

log_ratios = st.floats(-3, 3)
advantages = st.floats(-2, 2)


def loss_and_gradient(log_ratio, advantage, **options):
    x = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    loss, clipped = policy_loss(
        x, torch.tensor([advantage], dtype=x.dtype), torch.tensor([0.2], dtype=x.dtype), **options
    )
    loss.sum().backward()
    return loss.item(), x.grad.item(), bool(clipped.item())


@given(log_ratios, advantages)
def test_ppo_is_the_smaller_of_plain_and_clipped(log_ratio, advantage):
    ratio = math.exp(log_ratio)
    expected = -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    loss, gradient, clipped = loss_and_gradient(log_ratio, advantage)
    assert loss == pytest.approx(expected, abs=1e-9)
    pulls_further = (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
    assert clipped == pulls_further
    assert gradient == pytest.approx(0.0 if pulls_further else -ratio * advantage, abs=1e-9)


@given(log_ratios, st.floats(-2, -0.01))
def test_dual_clip_bounds_the_loss_of_bad_actions(log_ratio, advantage):
    loss, gradient, _ = loss_and_gradient(log_ratio, advantage, dual_clip=3.0)
    assert loss <= -3.0 * advantage + 1e-9
    assert abs(gradient) <= 3.0 * abs(advantage) + 1e-9
    unbounded, _, _ = loss_and_gradient(log_ratio, advantage)
    assert loss == pytest.approx(min(unbounded, -3.0 * advantage))


@given(log_ratios, advantages)
def test_aspo_penalises_bad_actions_quadratically(log_ratio, advantage):
    ratio = math.exp(log_ratio)
    loss, _, clipped = loss_and_gradient(log_ratio, advantage, trust_region="aspo")
    if advantage > 0:
        assert loss == pytest.approx(loss_and_gradient(log_ratio, advantage)[0])
    else:
        assert loss == pytest.approx(-(advantage * ratio - abs(advantage) / 0.4 * (ratio - 1) ** 2), abs=1e-9)
        assert not clipped


def test_at_equal_policies_the_gradient_is_that_of_imitation():
    """At r = 1 and A = 1 the objective's gradient is the gradient of the log ratio itself."""
    _, gradient, clipped = loss_and_gradient(0.0, 1.0, dual_clip=3.0)
    assert gradient == -1.0
    assert not clipped


def test_every_sample_has_its_own_clip_range():
    log_ratio, advantage = torch.full((2, 1), math.log(1.3)), torch.ones(2)
    loss, clipped = policy_loss(log_ratio, advantage, torch.tensor([0.1, 0.5]))
    torch.testing.assert_close(loss, torch.tensor([-1.1, -1.3]))
    assert clipped.flatten().tolist() == [True, False]


@given(st.floats(-1e6, 1e6))
def test_a_clamped_log_ratio_is_bounded_and_keeps_its_gradient(value):
    x = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    clamped = clamp_through(x, 3.0)
    clamped.sum().backward()
    assert clamped.item() == pytest.approx(min(max(value, -3.0), 3.0), abs=1e-9)
    assert x.grad.item() == 1.0


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(-2, 2))
def test_value_loss_takes_the_worse_of_plain_and_clipped(value, old, target):
    loss, clipped = value_loss(*(torch.tensor([x], dtype=torch.float64) for x in (value, old, target)), 0.2)
    near = old + min(max(value - old, -0.2), 0.2)
    assert loss.item() == pytest.approx(0.5 * max((value - target) ** 2, (near - target) ** 2), abs=1e-12)
    assert clipped.item() == ((near - target) ** 2 > (value - target) ** 2)


def test_approximate_kl_is_zero_for_equal_policies_and_never_negative():
    assert approximate_kl(torch.zeros(4, 2)) == 0
    assert approximate_kl(torch.randn(1000, generator=torch.Generator().manual_seed(0))) > 0


def test_an_unknown_trust_region_is_refused():
    with pytest.raises(ValueError, match="trust_region: expected 'ppo' or 'aspo'"):
        loss_and_gradient(0.0, 1.0, trust_region="spo")


# ---------------------------------------------------------------------- bounded negatives


def tensors(seed=0):
    """Velocities (3, 2, 4, 2), old ones, targets, and a mask that leaves out steps and a dimension."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(3, 2, 4, 2, generator=generator, dtype=torch.float64) for _ in range(3)]
    mask = torch.ones(3, 4, 2, dtype=torch.bool)
    mask[0, 2:] = mask[1, :, 1] = False
    return *parts, mask


def test_bounded_negatives_are_the_two_weighted_errors_written_out():
    velocity, old, target, mask = tensors()
    advantages, limit, beta = [0.8, -0.2, -3.0], 0.8, 0.7
    found = bounded_negatives_loss(velocity, old, target, mask, torch.tensor(advantages), limit=limit, beta=beta)
    for b, advantage in enumerate(advantages):
        weight = (min(max(advantage, -limit), limit) + limit) / (2 * limit)
        points = []
        for s in range(2):
            steps = []
            for t in range(4):
                dims = [d for d in range(2) if mask[b, t, d]]
                if not dims:
                    continue
                v, w, u = (part[b, s, t, dims].numpy() for part in (velocity, old, target))
                plus, minus = w + beta * (v - w), w - beta * (v - w)
                steps.append(weight * ((plus - u) ** 2).mean() + (1 - weight) * ((minus - u) ** 2).mean())
            points.append(sum(steps) / len(steps))
        assert float(found[b]) == pytest.approx(sum(points) / 2)


def test_good_is_flow_matching_and_bad_has_a_finite_end():
    _, old, target, mask = tensors()
    options = {"limit": 0.8, "beta": 1.0}

    def loss(velocity, advantage):
        return bounded_negatives_loss(velocity, old, target, mask, torch.full((3,), advantage), **options).sum()

    velocity = old.clone().requires_grad_()
    (good,) = torch.autograd.grad(loss(velocity, 1.0), velocity)
    (bad,) = torch.autograd.grad(loss(velocity, -1.0), velocity)
    (neither,) = torch.autograd.grad(loss(velocity, 0.0), velocity)
    torch.testing.assert_close(good, -bad)
    assert good.abs().max() > 0.1
    assert neither.abs().max() < 1e-12
    assert float(loss(target, 1.0)) == pytest.approx(0.0)
    mirrored = 2 * old - target
    assert float(loss(mirrored, -1.0)) == pytest.approx(0.0), "the furthest that a bad action pushes"
    assert float(loss(mirrored + 1, -1.0)) > 0
