"""Likelihood ratios: 1 for equal policies, equal to independent formulas, blind to what was not executed."""

import copy

import pytest
import torch

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.modeling_syvla.flow_matching import euler_sample
from syvla.modeling_syvla.flow_sde import sample_with_sde_step, sde_step
from syvla.training.rl.action_likelihood import action_log_ratio, action_scores, disable_dropout, require_scored_design
from syvla.training.rl.flow_points import METHODS, chain_points, flow_sde_points, make_points

SEEDS = [11, 12, 13]


@pytest.fixture
def batch(tiny_processor, unequal_items):
    batch = tiny_processor.collate(unequal_items)
    batch["actions"] = torch.where(batch["action_mask"], batch["actions"], 0.0)  # as the model's own loss does
    return batch


def with_dropout(make_model):
    model = make_model(expert={"attention_dropout": 0.3})
    for module in model.vlm.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2
    return model


def perturbed(model, scale=0.02):
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean()
    return other


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("scope", ["all", "suffix"])
def test_ratio_is_one_before_the_first_step(make_model, batch, tmp_path, method, training, scope):
    """In both modes, with dropout configured, with Intention Decoupling, and for the policy loaded from disk."""
    model = with_dropout(make_model)
    model.config.expert_config.cross_attention_scope = scope
    model.train(training)
    disable_dropout(model)
    points = make_points(batch, SEEDS, model.config, method=method, num_samples=3)
    with torch.no_grad():
        old = action_scores(model, batch, points)
    assert (old.query_mask.sum(1) == 7).all(), "decoupling masks one of 8 states in either mode"
    new = action_log_ratio(model, batch, old.scores, SEEDS, method=method, num_samples=3)
    assert new.shape == (3, 3)
    assert new.requires_grad
    torch.testing.assert_close(new, torch.zeros(3, 3), atol=2e-5, rtol=0)
    model.save_pretrained(tmp_path)
    loaded = SyVLAModel.from_pretrained(tmp_path).train(training)
    disable_dropout(loaded)
    again = action_log_ratio(loaded, batch, old.scores, SEEDS, method=method, num_samples=3)
    torch.testing.assert_close(again, torch.zeros(3, 3), atol=2e-5, rtol=0)
    assert action_log_ratio(perturbed(model), batch, old.scores, SEEDS, method=method, num_samples=3).abs().max() > 1e-3


def test_dropout_left_on_is_refused(make_model, batch):
    model = with_dropout(make_model).train()
    points = make_points(batch, SEEDS, model.config)
    with pytest.raises(ValueError, match="call disable_dropout"):
        action_scores(model, batch, points)
    config = model.config.to_dict()
    disable_dropout(model)
    action_scores(model, batch, points)
    assert model.config.to_dict() == config, "what is saved stays as it was"


def test_fpo_scores_are_the_models_flow_matching_loss_summed_over_steps(tiny_model, batch):
    """-score = loss per entry * number of steps that count; the model's own forward, once per draw, agrees."""
    tiny_model.config.chunk_end = "noise"
    points = make_points(batch, SEEDS, tiny_model.config, num_samples=2)
    with torch.no_grad():
        scores = action_scores(tiny_model, batch, points, decoupling=False).scores
        for draw in range(2):
            noise = batch["actions"] - points.target[:, draw]
            output = tiny_model(**batch, noise=noise, timestep=points.timestep[:, draw])
            steps = batch["action_mask"].any(-1).sum(-1)
            torch.testing.assert_close(-scores[:, draw], output.action_loss_per_sample * steps, rtol=1e-4, atol=1e-5)


def test_decoupling_masks_as_the_models_own_loss_does(tiny_model, batch):
    tiny_model.train()
    tiny_model.config.chunk_end = "noise"
    points = make_points(batch, SEEDS, tiny_model.config, num_samples=1)
    found = action_scores(tiny_model, batch, points).query_mask
    noise = batch["actions"] - points.target[:, 0]
    output = tiny_model(**batch, noise=noise, timestep=points.timestep[:, 0])
    assert torch.equal(found, output.query_mask)
    assert action_scores(tiny_model, batch, points, decoupling=False).query_mask is None


@pytest.mark.parametrize("method", METHODS)
def test_steps_that_were_never_executed_do_not_count(tiny_model, batch, method):
    mask = batch["action_mask"].clone()
    mask[:, 4:] = False
    changed = {**batch, "action_mask": mask, "actions": batch["actions"].clone()}
    whole = {**batch, "action_mask": mask}
    options = {"method": method, "num_samples": 2}
    points = make_points(whole, SEEDS, tiny_model.config, **options)
    spoiled = make_points(changed, SEEDS, tiny_model.config, **options)
    spoiled.target[:, :, 4:] = torch.nan
    with torch.no_grad():
        expected = action_scores(tiny_model, whole, points, decoupling=False).scores
        assert torch.equal(action_scores(tiny_model, changed, spoiled, decoupling=False).scores, expected)
        nothing = {**whole, "action_mask": torch.zeros_like(mask)}
        assert not action_scores(tiny_model, nothing, points, decoupling=False).scores.any()


def test_a_seed_decides_the_points_whatever_the_batch(tiny_model, batch):
    for method in METHODS:
        together = make_points(batch, SEEDS, tiny_model.config, method=method, num_samples=2)
        one = {key: batch[key][1:2] for key in ("actions", "embodiment_ids")}
        alone = make_points(one, SEEDS[1:2], tiny_model.config, method=method, num_samples=2)
        for name in ("x", "timestep", "target", "weight"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[1]), (method, name)
        other = make_points(one, [99], tiny_model.config, method=method, num_samples=2)
        assert not torch.equal(alone.x, other.x)


@pytest.mark.parametrize(
    "design",
    [
        {"action_head": "l1_regression", "intention_decoupling": False},
        {"conditioning": "all_hidden_states", "intention_decoupling": False},
    ],
    ids=lambda design: next(iter(design.values())),
)
def test_a_baselines_design_is_refused(design):
    require_scored_design(SyVLAConfig.tiny())
    name, value = next(iter(design.items()))
    with pytest.raises(ValueError, match=f"{name}: reinforcement learning scores .*{value}.*without this override"):
        require_scored_design(SyVLAConfig.tiny(**design))


@pytest.mark.parametrize(
    "control", [{"decoupling_choice": "random"}, {"query_noise": 0.1}], ids=lambda c: next(iter(c))
)
def test_controls_that_draw_anew_for_every_score_are_refused(control):
    ((name, value),) = control.items()
    with pytest.raises(ValueError, match=f"{name}: .* for which {value!r} would draw anew"):
        require_scored_design(SyVLAConfig.tiny(**control))
    require_scored_design(SyVLAConfig.tiny(decoupling_choice="strongest"))


# ---------------------------------------------------------------------- flow_sde


def test_sde_step_is_the_formula_of_the_reference():
    """With tau = 1 - t, written out in Flow-GRPO's terms."""
    num_steps, level = 10, 0.5
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(9, 6, generator=generator).double(), torch.randn(9, 6, generator=generator).double()
    t = (torch.arange(1, 10) / num_steps).double()
    keep, gain, std = sde_step(t, num_steps, level)
    tau, d = (1 - t)[:, None], 1 / num_steps
    s = level * (tau / (1 - tau)).sqrt()
    action, noise = x + tau * v, x - (1 - tau) * v
    mean = action * (1 - (tau - d)) + noise * (tau - d - s**2 * d / (2 * tau))
    torch.testing.assert_close(keep[:, None] * x + gain[:, None] * v, mean)
    torch.testing.assert_close(std[:, None], s * d**0.5)


def test_scores_of_a_stored_chain_are_gaussian_log_densities():
    """Differences of scores equal differences of torch's own log density, per dimension."""
    generator = torch.Generator().manual_seed(0)
    before, after, v_old, v_new = (torch.randn(4, 1, 1, 1, generator=generator) for _ in range(4))
    step = torch.tensor([[0], [1], [5], [9]])
    points = chain_points(before, after, step, num_steps=10, noise_level=0.5)
    keep, gain, std = (part[..., None, None] for part in sde_step(step / 10, 10, 0.5))

    def log_density(v):
        return torch.distributions.Normal(keep * before + gain * v, std).log_prob(after).flatten()

    def score(v):
        return (-points.weight[..., None, None] * (v - points.target) ** 2).flatten()

    torch.testing.assert_close(
        score(v_new) - score(v_old), log_density(v_new) - log_density(v_old), rtol=1e-4, atol=1e-4
    )


def test_pseudo_chain_bridges_to_the_flow_matching_loss():
    """E_z[log ratio] = w(t) (|v_old - u|^2 - |v_new - u|^2), w = d (1 + a^2/2)^2 (1 - tau) / (2 a^2 tau).

    The identity of `flow_points`, by Monte Carlo over 200,000 pseudo-chains per step, within 5 standard errors.
    """
    draws, num_steps, level = 200_000, 10, 0.5
    action, v_old, v_new = torch.tensor(0.7), torch.tensor(0.4), torch.tensor(0.1)
    points = flow_sde_points(action.view(1, 1, 1), [3], draws, num_steps=num_steps, noise_level=level)
    noise = (points.x - points.timestep[..., None, None] * action) / (1 - points.timestep[..., None, None])
    u = (action - noise).flatten()
    difference = (v_old - points.target).square() - (v_new - points.target).square()
    log_ratio = points.weight.flatten() * difference.flatten()
    tau, d = 1 - points.timestep.flatten(), 1 / num_steps
    weight = d * (1 + level**2 / 2) ** 2 * (1 - tau) / (2 * level**2 * tau)
    expected = weight * ((v_old - u).square() - (v_new - u).square())
    for step in range(1, num_steps):  # the first step's scale is bounded, so the closed form differs there
        chosen = (points.timestep.flatten() * num_steps).round() == step
        error = (log_ratio - expected)[chosen]
        assert error.mean().abs() < 5 * error.std() / chosen.sum().sqrt(), step
        assert expected[chosen].mean().abs() > 1e-3
        torch.testing.assert_close(points.weight.flatten()[chosen], weight[chosen])


def test_sampler_with_one_stochastic_step_keeps_the_marginals():
    """Velocity of a Gaussian flow N(0, 1) -> N(m, s^2) in closed form: the samples' mean and spread are the data's."""
    mean, spread, count, num_steps = 1.5, 0.3, 40_000, 100

    def velocity(x, t):
        t = t[:, None, None]
        variance = (1 - t) ** 2 + (t * spread) ** 2
        slope = (t * spread**2 - (1 - t)) / variance
        return mean + slope * (x - t * mean)

    generator = torch.Generator().manual_seed(0)
    noise, kick = (torch.randn(count, 1, 1, generator=generator) for _ in range(2))
    step = torch.randint(num_steps, (count,), generator=generator)
    actions, before, after = sample_with_sde_step(velocity, noise, kick, step, num_steps=num_steps, noise_level=0.5)
    deterministic = euler_sample(velocity, noise, num_steps)
    assert actions.mean().item() == pytest.approx(mean, abs=0.02)
    assert actions.std().item() == pytest.approx(deterministic.std().item(), rel=0.05)
    points = chain_points(before[:, None], after[:, None], step[:, None], num_steps=num_steps, noise_level=0.5)
    exact = velocity(before, step / num_steps)[:, None]
    residual = (points.weight[..., None, None] * 2).sqrt() * (exact - points.target)
    torch.testing.assert_close(residual.flatten(), -kick.flatten(), atol=1e-2, rtol=1e-2)


def test_stored_chains_and_pseudo_chains_share_a_batch(tiny_model, batch):
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(batch["actions"].shape, generator=generator) for _ in range(2))
    mixed = {**batch, "chain_before": before, "chain_after": after, "chain_step": torch.tensor([4, -1, 0])}
    plain = make_points(batch, SEEDS, tiny_model.config, method="flow_sde", num_samples=2)
    points = make_points(mixed, SEEDS, tiny_model.config, method="flow_sde", num_samples=2)
    assert torch.equal(points.x[1], plain.x[1])
    assert torch.equal(points.x[0, 1], before[0])
    assert points.timestep[0].tolist() == pytest.approx([0.4, 0.4])
    assert points.timestep[2].tolist() == [0.0, 0.0]
    assert torch.isfinite(points.weight).all()


def test_descending_the_ratio_raises_the_likelihood(tiny_model, batch):
    """One gradient step on -log ratio lowers the flow-matching loss of those chunks: trust-region imitation."""
    tiny_model.train()
    points = make_points(batch, SEEDS, tiny_model.config, num_samples=8)
    with torch.no_grad():
        old = action_scores(tiny_model, batch, points, decoupling=False).scores
    optimizer = torch.optim.SGD(tiny_model.parameters(), lr=1e-3)
    for _ in range(3):
        loss = -action_log_ratio(tiny_model, batch, old, SEEDS, num_samples=8, decoupling=False).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < -1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "nft"}, "method: expected one of fpo, flow_sde"),
        ({"seeds": [1]}, "seeds: expected one for each of the 3 samples, got 1"),
        ({"num_samples": 4}, r"old_scores: expected shape \(3, 4\), got \(3, 8\)"),
        ({"method": "flow_sde", "num_steps": 1}, "at least 2 flow steps"),
        ({"method": "flow_sde", "noise_level": 0.0}, "positive noise level"),
    ],
)
def test_bad_input_is_named(tiny_model, batch, change, message):
    options = {"seeds": SEEDS, **change}
    with pytest.raises(ValueError, match=message):
        action_log_ratio(tiny_model, batch, torch.zeros(3, 8), **options)
