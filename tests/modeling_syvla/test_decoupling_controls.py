"""The controls of Intention Decoupling: other states masked, as many of them, and noise in place of a mask."""

import copy

import numpy as np
import pytest
import torch

from syvla.modeling_syvla.expert_inputs import ExpertObservation
from syvla.modeling_syvla.flow_matching import flow_matching_loss, interpolate
from syvla.modeling_syvla.intention_decoupling import decoupling_mask, noisy_states


@pytest.fixture
def batch(tiny_processor, make_item, tiny_model):
    collated = tiny_processor.collate([make_item(i, thought="reach the block") for i in range(3)])
    generator = torch.Generator().manual_seed(0)
    shape = (3, tiny_model.config.chunk_size, tiny_model.config.max_action_dim)
    noise, timestep = torch.randn(shape, generator=generator), torch.rand(3, generator=generator)
    return {**collated, "noise": noise, "timestep": timestep}


def independent_norms(model, batch):
    """Norms of the gradient, sample by sample and with nothing of the module under test, float64 (B, N)."""
    model = copy.deepcopy(model).eval()
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    states = model.select_query_states(model.encode(**inputs), batch["input_ids"]).detach().requires_grad_()
    names = ("state", "embodiment_ids", "expert_pixel_values", "expert_view_mask")
    encoded = model.expert.encode_observation(ExpertObservation(*(batch[name] for name in names)))
    actions = batch["actions"].masked_fill(~batch["action_mask"], 0.0)
    noisy = interpolate(batch["noise"], actions, batch["timestep"])
    context = model.expert.encode_context(encoded, model.adapter(states))
    velocity = model.expert.predict_velocity(noisy, batch["timestep"], context)
    loss = flow_matching_loss(velocity, batch["noise"], actions, batch["action_mask"])
    rows = [torch.autograd.grad(loss[i], states, retain_graph=True)[0][i] for i in range(len(loss))]
    return np.stack([row.double().square().sum(-1).sqrt().numpy() for row in rows])


def mask_of(make_model, batch, **overrides):
    model = make_model(chunk_end="noise", **overrides).train()
    return ~model(**batch).query_mask.numpy(), model


@pytest.mark.parametrize(("quantile", "count"), [(0.05, 1), (0.2, 2), (0.5, 4)])
def test_weakest_and_strongest_mask_what_an_independent_computation_names(make_model, batch, quantile, count):
    weakest, model = mask_of(make_model, batch, decoupling_quantile=quantile)
    strongest, _ = mask_of(make_model, batch, decoupling_quantile=quantile, decoupling_choice="strongest")
    order = independent_norms(model, batch).argsort(axis=1)
    for row in range(3):
        assert set(weakest[row].nonzero()[0]) == set(order[row, :count])
        assert set(strongest[row].nonzero()[0]) == set(order[row, -count:])


@pytest.mark.parametrize("quantile", [0.05, 0.2, 0.5])
def test_random_masks_as_many_states_and_others_each_time(make_model, batch, quantile):
    weakest, _ = mask_of(make_model, batch, decoupling_quantile=quantile)
    model = make_model(chunk_end="noise", decoupling_quantile=quantile, decoupling_choice="random").train()
    torch.manual_seed(1)
    masks = [~model(**batch).query_mask.numpy() for _ in range(12)]
    for mask in masks:
        assert (mask.sum(1) == weakest.sum(1)).all()
    assert len({mask.tobytes() for mask in masks}) > 1
    torch.manual_seed(1)
    assert (~model(**batch).query_mask.numpy() == masks[0]).all(), "drawn from torch's generator alone"


def test_every_state_is_drawn_equally_often_whatever_its_norm():
    torch.manual_seed(0)
    norms = torch.arange(10.0).repeat(4000, 1)
    share = (~decoupling_mask(norms, 0.05, "sample", "random")).float().mean(0)
    assert torch.allclose(share, torch.full((10,), 0.1), atol=5 * (0.09 / 4000) ** 0.5)
    by_batch = ~decoupling_mask(norms[:20], 0.05, "batch", "random")
    assert by_batch.sum() == (~decoupling_mask(torch.rand(20, 10), 0.05, "batch")).sum() == np.ceil(0.05 * 199)


def test_the_strongest_are_the_weakest_of_the_negative():
    norms = torch.rand(5, 20, generator=torch.Generator().manual_seed(0))
    assert (~decoupling_mask(norms, 0.05, "sample", "strongest")).nonzero()[:, 1].tolist() == norms.argmax(1).tolist()
    with pytest.raises(
        ValueError, match="decoupling_choice: expected one of 'weakest', 'random', 'strongest', got 'x'"
    ):
        decoupling_mask(norms, 0.05, "sample", "x")


def test_noise_has_the_stated_size_and_leaves_masked_states_zero():
    torch.manual_seed(0)
    states = torch.randn(2, 3, 20_000) * torch.tensor([[1.0, 3.0, 0.0], [0.2, 5.0, 1.0]])[..., None]
    added = noisy_states(states, 0.5) - states
    size = states.square().mean(-1).sqrt()
    assert torch.allclose(added.square().mean(-1).sqrt(), 0.5 * size, rtol=0.03)
    assert not added[0, 2].any()
    # 1 / sqrt(N): as much expected squared change as zeroing one of N equal states
    equal = torch.randn(1, 10, 20_000)
    zeroed = equal[0, 0].square().sum()
    assert (noisy_states(equal, 10**-0.5) - equal).square().sum().item() == pytest.approx(zeroed.item(), rel=0.05)


def test_noise_acts_in_training_alone_and_both_passes_see_it(make_model, batch):
    quiet, noisy = make_model(), make_model(query_noise=0.3)
    with torch.no_grad():
        torch.testing.assert_close(noisy(**batch).action_loss, quiet(**batch).action_loss)
    noisy.train()
    seen = []
    original = noisy.expert.encode_context
    noisy.expert.encode_context = lambda e, c, m: seen.append(c.detach().clone()) or original(e, c, m)
    torch.manual_seed(0)
    output = noisy(**batch)
    kept = output.query_mask
    torch.testing.assert_close(seen[0][kept], seen[1][kept])
    assert not torch.allclose(seen[0][~kept], seen[1][~kept])
    torch.manual_seed(1)
    assert noisy(**batch).action_loss.item() != output.action_loss.item()
    output.loss.backward()
    assert noisy.action_queries.weight.grad.abs().sum() > 0, "the states still lead back into the VLM"
    off = make_model(query_noise=0.3, intention_decoupling=False).train()
    torch.manual_seed(0)
    assert off(**batch).action_loss.item() != pytest.approx(quiet.train()(**batch).action_loss.item(), abs=1e-6)
