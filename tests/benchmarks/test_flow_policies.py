"""The exactly known flow ends where it should, and its errors fall as a solver's order says."""

import json

import pytest
import torch

from benchmarks import flow_policies
from benchmarks.flow_policies import EVALUATIONS, SOLVERS, mixture_flow, solver_of
from syvla.modeling_syvla.flow_matching import integrate
from syvla.modeling_syvla.flow_solver import FlowSolver


def test_the_flow_of_one_normal_distribution_moves_noise_along_a_straight_map():
    """Noise to N(m, s^2) has the solution x_1 = m + s x_0, whatever the path between."""
    velocity, noise, _ = mixture_flow(0.3, modes=1, steps=4, dimensions=2)
    end = integrate(velocity, noise, FlowSolver(2000))
    centers = end - 0.3 * noise
    other = torch.randn(noise.shape, generator=torch.Generator().manual_seed(5))
    again = integrate(velocity, other, FlowSolver(2000)) - 0.3 * other
    torch.testing.assert_close(centers, again, atol=2e-3, rtol=0)


def test_samples_of_a_narrow_mixture_lie_at_its_centers():
    """Two chunks of noise that end at the same one end close together, at the spread's distance."""
    velocity, noise, _ = mixture_flow(0.05, modes=2, steps=10, dimensions=4)
    ends = torch.stack([integrate(velocity, torch.randn(noise.shape, generator=torch.Generator().manual_seed(i)),
                                  FlowSolver(200)) for i in range(3)])  # fmt: skip
    nearest = torch.stack([(ends[a] - ends[b]).square().mean((1, 2)).sqrt() for a, b in ((0, 1), (0, 2), (1, 2))]).amin(
        0
    )
    assert nearest.median() < 0.12  # of three, two share one of two ways; 0.05 * sqrt(2) apart


def test_orders_of_the_solvers():
    velocity, noise, _ = mixture_flow(0.5, modes=1, steps=4, dimensions=2)
    exact = integrate(velocity, noise, FlowSolver(5000))

    def error(name, n):
        return float((integrate(velocity, noise, solver_of(name, n)) - exact).square().mean().sqrt())

    assert error("euler:1", 20) / error("euler:1", 40) == pytest.approx(2, rel=0.15)
    assert error("ab2:1", 20) / error("ab2:1", 40) > 3


def test_distances_of_the_exact_flow_are_its_spread():
    velocity, noise, centers = mixture_flow(0.3, modes=2, steps=20, dimensions=4)
    ends = integrate(velocity, noise, FlowSolver(1000))
    far = (ends[:, None] - centers).square().mean((2, 3)).amin(1).mean().sqrt()
    assert float(far) == pytest.approx(0.3, rel=0.06)


def test_the_committed_table_covers_every_setting_and_ten_euler_steps_are_their_own_share():
    path = flow_policies.RESULTS / "flow_policies.json"
    flows = json.loads(path.read_text(encoding="utf-8"))["flows"]
    assert len(flows) >= 2
    for flow in flows.values():
        assert {name: set(flow["errors"][name]) for name in SOLVERS} == {
            name: set(map(str, EVALUATIONS)) for name in SOLVERS
        }
    assert flow_policies.relative(flows, "euler:1", 10) == pytest.approx((1, 1))
