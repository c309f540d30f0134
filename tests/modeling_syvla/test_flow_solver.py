"""Solver and time grid of the flow, against closed forms and against an integration by scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from syvla.modeling_syvla import SyVLAConfig
from syvla.modeling_syvla.flow_matching import integrate
from syvla.modeling_syvla.flow_solver import FlowSolver, require_uniform_euler


def end_point(velocity, solver: FlowSolver) -> float:
    start = torch.ones(1, 1, 1, dtype=torch.float64)
    return integrate(lambda x, t: velocity(x, t.double()[:, None, None]), start, solver).item()


def test_the_grid_runs_from_noise_to_action_in_ever_shorter_steps():
    assert FlowSolver(4).times == (0, 0.25, 0.5, 0.75, 1)
    solver = FlowSolver(5, grid_power=2.0)
    np.testing.assert_allclose(solver.times, [0, 0.36, 0.64, 0.84, 0.96, 1], atol=1e-12)
    sizes = [solver.step_size(k) for k in range(5)]
    assert sum(sizes) == pytest.approx(1)
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("power", [1.0, 2.0, 2.5])
def test_ab2_integrates_a_velocity_linear_in_time_exactly_after_its_first_step(power):
    """v = t: the end is 1 + 1/2. Euler's first step, from t = 0, misses the triangle h^2 / 2 and nothing else is wrong."""
    solver = FlowSolver(6, "ab2", power)
    missed = solver.step_size(0) ** 2 / 2
    assert end_point(lambda x, t: t.expand_as(x), solver) == pytest.approx(1.5 - missed, abs=1e-7)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("ab2", 2)])
@pytest.mark.parametrize("power", [1.0, 2.5])
def test_order_of_convergence(method, order, power):
    """Twice the steps divide the error by 2^order, on a field that depends on point and time; the end is scipy's."""

    def velocity(x, t):
        return -x * (1 + 3 * t) + torch.sin(4 * t)

    exact = solve_ivp(lambda t, x: -x * (1 + 3 * t) + np.sin(4 * t), (0, 1), [1.0], rtol=1e-11, atol=1e-12).y[0, -1]
    coarse, fine = (abs(end_point(velocity, FlowSolver(n, method, power)) - exact) for n in (80, 160))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", [FlowSolver(3), FlowSolver(4, "ab2", 2.5), FlowSolver(1, "ab2")])
def test_a_bound_step_ends_at_what_it_continues(solver):
    """Weight 1: the line to y has one velocity, which every solver keeps, whatever the flow says."""
    generator = torch.Generator().manual_seed(0)
    noise, target = (torch.randn(2, 4, 3, generator=generator) for _ in range(2))
    weights = torch.zeros(2, 4, 1)
    weights[:, :2] = 1.0

    def velocity(x, t):
        return torch.sin(3 * x)

    bound = integrate(velocity, noise, solver, (target, weights))
    torch.testing.assert_close(bound[:, :2], target[:, :2])
    torch.testing.assert_close(bound[:, 2:], integrate(velocity, noise, solver)[:, 2:])


def test_fewer_evaluations_of_a_flow_that_bends_at_its_end_cost_less_on_the_finer_grid():
    """Actions near two values: the exact velocity of that flow turns late. Reference: 4000 Euler steps."""

    def velocity(x, t):  # noise N(0, 1), actions -1 or 1 with equal chance: E[action - noise | x]
        left = 1 - t
        spread = (left**2 + 1e-4).clamp(min=1e-4)
        mean = torch.tanh(x * t / spread)
        return (mean - x) / (left + 1e-3)

    start = torch.linspace(-2, 2, 41).view(-1, 1, 1)
    exact = integrate(velocity, start, FlowSolver(4000))

    def error(solver):
        return (integrate(velocity, start, solver) - exact).square().mean().sqrt().item()

    assert error(FlowSolver(5, grid_power=2.0)) < error(FlowSolver(5))


def test_the_configuration_keeps_the_meaning_of_old_checkpoints(tmp_path):
    old = SyVLAConfig.tiny().to_dict()
    del old["flow_solver"], old["flow_grid_power"]
    assert FlowSolver.of(SyVLAConfig.from_dict(old)).uniform_euler
    config = SyVLAConfig.tiny(flow_solver="ab2", flow_grid_power=2.5, num_inference_steps=4)
    config.save_pretrained(tmp_path)
    read = SyVLAConfig.from_pretrained(tmp_path)
    assert FlowSolver.of(read) == FlowSolver(4, "ab2", 2.5)
    assert FlowSolver.of(read, 6).num_steps == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flow_solver": "heun"}, "flow_solver: expected one of euler, ab2, got 'heun'"),
        ({"flow_grid_power": 0.5}, "flow_grid_power: expected a number from 1"),
        ({"flow_grid_power": float("nan")}, "flow_grid_power: expected a number from 1"),
        ({"action_head": "l1_regression", "flow_grid_power": 2.0}, "flow_solver: has no effect"),
    ],
)
def test_impossible_solvers_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        SyVLAConfig.tiny(**fields)


def test_scoring_by_a_stochastic_step_asks_for_equal_euler_steps():
    require_uniform_euler(SyVLAConfig.tiny(), "flow_sde")
    with pytest.raises(ValueError, match="flow_sde: expected a checkpoint with flow_solver='euler'"):
        require_uniform_euler(SyVLAConfig.tiny(flow_grid_power=2.0), "flow_sde")
    with pytest.raises(ValueError, match="num_steps: expected at least 1"):
        FlowSolver(0)
