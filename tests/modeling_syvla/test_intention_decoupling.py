"""Intention Decoupling: the theorem behind it, which states it masks, and that its first pass leaves no trace."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from syvla.modeling_syvla import SyVLAExpertConfig, unused_weights
from syvla.modeling_syvla.action_expert import ExpertLayer
from syvla.modeling_syvla.expert_inputs import ExpertObservation
from syvla.modeling_syvla.flow_matching import flow_matching_loss, interpolate
from syvla.modeling_syvla.intention_decoupling import (
    decoupling_mask,
    find_decoupling_mask,
    gradient_norms,
    keep_states,
)


def closed_form(h, q, w_k, w_v, dl_dz, scale):
    """Theorem 3.2 for one query vector, row by row; h (N, D), q (d,), w_k, w_v (d, D), dl_dz (d,) -> (N, D).

    The published kernel is exp(q k / sqrt(d)) (theorem B.1), whose derivative carries the factor 1 / sqrt(d) that the
    last lines of the appendix leave out.
    """
    alpha = torch.exp(torch.stack([q @ (w_k @ h_i) for h_i in h]) * scale)
    v = [w_v @ h_i for h_i in h]
    z = sum(a * v_i for a, v_i in zip(alpha, v, strict=True)) / alpha.sum()
    rows = []
    for a, v_i in zip(alpha, v, strict=True):
        jacobian = torch.outer(v_i - z, q @ w_k) * scale + w_v  # (d, D)
        rows.append((a / alpha.sum()) * (dl_dz @ jacobian))
    return torch.stack(rows)


def test_theorem_3_2_equals_autograd_on_one_attention_layer():
    """A plain single-head layer with a fixed query and a non-linear psi behind it, in float64."""
    generator = torch.Generator().manual_seed(0)
    n, width, d = 7, 12, 5

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    q, w_k, w_v, head, target = draw(d), draw(d, width), draw(d, width), draw(4, d), draw(4)
    h = draw(1, n, width).requires_grad_(True)

    def forward():
        attention = ((h[0] @ w_k.T) @ q / d**0.5).softmax(0)
        z = attention @ (h[0] @ w_v.T)
        return z, ((head @ torch.tanh(z)).sin() - target).square().mean()

    z, loss = forward()
    (dl_dz,) = torch.autograd.grad(loss, z)
    expected = closed_form(h.detach()[0], q, w_k, w_v, dl_dz, d**-0.5)
    (by_autograd,) = torch.autograd.grad(forward()[1], h)
    torch.testing.assert_close(by_autograd[0], expected, atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(gradient_norms(forward()[1][None], h)[0], expected.norm(dim=-1).float())


def test_theorem_3_2_holds_for_the_expert_layer():
    """The same with the model's own layer: one head, one token, self-attention, norms and MLP around the attention."""
    torch.manual_seed(0)
    config = SyVLAExpertConfig(hidden_size=12, num_attention_heads=1, head_dim=6, ff_multiple_of=4)
    layer = ExpertLayer(config).double()
    x = torch.randn(1, 1, 12, dtype=torch.float64)
    h = torch.randn(1, 9, 12, dtype=torch.float64, requires_grad=True)
    target = torch.randn(1, 1, 12, dtype=torch.float64)
    out, _ = layer.run_prefix(x, mask=None, condition=layer.project_condition(h), condition_mask=None)
    norms = gradient_norms((out - target).square().mean(dim=(1, 2)), h)

    with torch.no_grad():
        attended = x + layer.self_attn(layer.self_attn_norm(x), layer.self_attn.key_value(layer.self_attn_norm(x)))
        cross = layer.cross_attn
        q = cross.q_proj(layer.cross_attn_norm(attended))[0, 0]
        states = h.detach()[0]
        scores = (states @ cross.k_proj.weight.T) @ q / 6**0.5
        z = scores.softmax(0) @ (states @ cross.v_proj.weight.T)
    z.requires_grad_(True)
    y = attended + cross.o_proj(z)
    y = y + layer.mlp(layer.mlp_norm(y))
    (dl_dz,) = torch.autograd.grad((y - target).square().mean(), z)
    expected = closed_form(states, q, cross.k_proj.weight, cross.v_proj.weight, dl_dz, 6**-0.5).detach()
    out, _ = layer.run_prefix(x, mask=None, condition=layer.project_condition(h), condition_mask=None)
    (by_autograd,) = torch.autograd.grad((out - target).square().mean(), h)
    torch.testing.assert_close(by_autograd[0], expected, atol=1e-14, rtol=1e-10)
    torch.testing.assert_close(norms[0], expected.norm(dim=-1).float())


# ---------------------------------------------------------------- which states are masked


@pytest.mark.parametrize("count", [2, 8, 20, 21, 101])
@pytest.mark.parametrize("quantile", [0.0, 0.03, 0.05, 0.15, 0.2, 0.5, 0.95])
def test_states_under_the_quantile_are_masked(count, quantile):
    norms = torch.rand(6, count, generator=torch.Generator().manual_seed(count)).square()
    for scope, axis in (("sample", 1), ("batch", None)):
        tau = np.quantile(norms.double().numpy(), quantile, axis=axis, keepdims=True)
        got = decoupling_mask(norms, quantile, scope).numpy()
        clear = np.abs(norms.double().numpy() - tau) > 1e-6  # rounding of the threshold itself may fall either way
        assert (got == (norms.numpy() >= tau))[clear].all()
        assert (~got).sum() == (np.ceil(quantile * (count - 1)) * 6 if axis else np.ceil(quantile * (6 * count - 1)))


def test_paper_defaults_mask_one_of_twenty():
    norms = torch.arange(20.0).flip(0)[None].repeat(3, 1)
    assert (~decoupling_mask(norms)).nonzero().tolist() == [[0, 19], [1, 19], [2, 19]]


def test_ties_and_a_zero_quantile_keep_every_state():
    assert decoupling_mask(torch.full((2, 20), 0.3), 0.05, "sample").all()
    assert decoupling_mask(torch.full((2, 20), 0.3), 0.05, "batch").all()
    assert decoupling_mask(torch.rand(2, 20), 0.0, "sample").all()
    assert decoupling_mask(torch.zeros(2, 20), 0.5, "sample").all()
    with pytest.raises(ValueError, match=r"decoupling_scope: expected 'sample' or 'batch', got 'token'"):
        decoupling_mask(torch.zeros(1, 2), 0.1, "token")


def test_masked_states_are_zero_and_pass_no_gradient_the_others_are_untouched():
    h = torch.randn(3, 10, 4, requires_grad=True)
    weight = torch.rand(3, 10)
    probe = h.detach().requires_grad_()
    mask = find_decoupling_mask((probe.sum(-1) * weight).sum(-1), probe, 0.25, "sample")
    masked = keep_states(h, mask)
    assert (~mask).sum(-1).tolist() == [3, 3, 3]
    assert masked[~mask].eq(0).all()
    assert torch.equal(masked[mask], h[mask])
    (gradient,) = torch.autograd.grad(masked.sum(), h)
    assert torch.equal(gradient, mask[..., None].expand_as(h).float())


# ---------------------------------------------------------------- inside the model


@pytest.fixture
def batch(tiny_processor, unequal_items):
    generator = torch.Generator().manual_seed(3)
    noise, timestep = torch.randn(3, 8, 14, generator=generator), torch.tensor([0.2, 0.5, 0.8])
    return {**tiny_processor.collate(unequal_items), "noise": noise, "timestep": timestep}


def observation_of(batch, rows=slice(None)) -> ExpertObservation:
    names = ("state", "embodiment_ids", "expert_pixel_values", "expert_view_mask")
    return ExpertObservation(*(batch[name][rows] for name in names))


def manual_two_passes(model, batch, quantile, scope):
    """The algorithm from its parts, recomputing everything in both passes: (loss, mask, norms)."""
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    hidden = model.encode(**inputs)
    states = model.select_query_states(hidden, batch["input_ids"])
    expert = model.expert

    def per_sample(h):
        context = expert.encode_context(expert.encode_observation(observation_of(batch)), model.adapter(h))
        actions = batch["actions"].masked_fill(~batch["action_mask"], 0.0)
        noisy = interpolate(batch["noise"], actions, batch["timestep"])
        velocity = expert.predict_velocity(noisy, batch["timestep"], context)
        return flow_matching_loss(velocity, batch["noise"], actions, batch["action_mask"])

    probe = states.detach().requires_grad_(True)
    norms = np.stack(
        [torch.autograd.grad(per_sample(probe)[i], probe)[0][i].norm(dim=-1).numpy() for i in range(len(probe))]
    )
    tau = np.quantile(norms.astype(np.float64), quantile, axis=1 if scope == "sample" else None, keepdims=True)
    mask = torch.from_numpy(norms >= tau)
    masked = torch.where(mask[..., None], states, torch.zeros_like(states))
    loss = per_sample(masked).mean() + model.lm_loss(hidden, batch["labels"])
    return loss, mask, norms


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("attention", ["all", "suffix"])
@pytest.mark.parametrize(("scope", "quantile"), [("sample", 0.05), ("batch", 0.3)])
def test_forward_and_backward_equal_the_manual_two_passes(make_model, batch, attention, scope, quantile):
    """With "suffix" the model shares the prefix between the passes; the manual computation does not."""
    model = make_model(
        expert={"cross_attention_scope": attention},
        decoupling_scope=scope,
        decoupling_quantile=quantile,
        chunk_end="noise",
    ).train()
    twin = copy.deepcopy(model)
    expected, mask, _ = manual_two_passes(twin, batch, quantile, scope)
    expected.backward()
    calls = []
    original = model.expert.encode_prefix
    model.expert.encode_prefix = lambda *a: calls.append(1) or original(*a)
    output = model(**batch)
    output.loss.backward()
    assert len(calls) == (1 if attention == "suffix" else 2)
    assert torch.equal(output.query_mask, mask)
    assert 0 < (~mask).sum() < mask.numel()
    torch.testing.assert_close(output.loss, expected, atol=1e-6, rtol=1e-6)
    ours, theirs = gradients(model), gradients(twin)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-6, rtol=1e-4, msg=name)


def test_both_passes_see_the_same_noise_and_time_and_the_first_leaves_no_gradient(tiny_model, batch):
    tiny_model.train()
    seen = []
    original = tiny_model.expert.predict_velocity

    def spy(noisy, timestep, context, attended):
        without = all(p.grad is None for p in tiny_model.parameters())
        seen.append((noisy.clone(), timestep.clone(), context.condition[0][0].clone(), without))
        return original(noisy, timestep, context, attended)

    tiny_model.expert.predict_velocity = spy
    for given in ({}, {"noise": None, "timestep": None}):  # given, then drawn inside
        seen.clear()
        output = tiny_model(**{**batch, **given})
        first, second = seen
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
        assert not torch.equal(first[2], second[2]), "the second pass sees masked states"
        assert first[3]
        assert second[3]
        assert all(p.grad is None for p in tiny_model.parameters()), "forward alone leaves no gradient anywhere"
    output.loss.backward()
    assert tiny_model.adapter[0].weight.grad is not None


def test_forward_leaves_accumulated_gradients_alone(tiny_model, tiny_processor, unequal_items, batch):
    """Two micro-batches accumulate to the sum of their own gradients; a pass 1 that leaked would add a third term."""
    tiny_model.train()
    other = {**tiny_processor.collate(unequal_items[::-1]), "noise": batch["noise"], "timestep": batch["timestep"]}
    alone = []
    for micro in (batch, other):
        tiny_model.zero_grad()
        tiny_model(**micro).loss.backward()
        alone.append({n: p.grad.clone() for n, p in tiny_model.named_parameters() if p.grad is not None})
    tiny_model.zero_grad()
    tiny_model(**batch).loss.backward()
    loss = tiny_model(**other).loss
    for name, p in tiny_model.named_parameters():
        if p.grad is not None:
            assert torch.equal(p.grad, alone[0][name]), name
    loss.backward()
    for name, p in tiny_model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, alone[0][name] + alone[1][name], atol=1e-6, rtol=1e-5, msg=name)


def test_gradient_of_a_query_state_is_independent_of_its_batch(tiny_model, batch, monkeypatch):
    """Summed, not averaged, sample losses: with "sample" scope the mask cannot depend on the neighbors."""
    import syvla.modeling_syvla.intention_decoupling as module

    norms = []
    tiny_model.config.chunk_end = "noise"
    original = module.gradient_norms
    monkeypatch.setattr(module, "gradient_norms", lambda *a: norms.append(original(*a)) or norms[-1])
    tiny_model.train()
    together = tiny_model(**batch).query_mask
    _, _, expected = manual_two_passes(tiny_model, batch, 0.05, "sample")
    torch.testing.assert_close(norms[0], torch.from_numpy(expected), atol=1e-7, rtol=1e-4)
    hidden = tiny_model(**batch).query_states.detach()
    for i in range(3):
        row = slice(i, i + 1)
        given = {k: batch[k][row] for k in ("actions", "action_mask", "noise", "timestep")}
        _, mask = tiny_model.action_loss(hidden[row], observation_of(batch, row), **given)
        torch.testing.assert_close(norms[-1][0], norms[0][i], atol=1e-7, rtol=1e-4)
        assert torch.equal(mask[0], together[i])


def test_gradient_checkpointing_changes_nothing(make_model, batch):
    results = []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        output = model(**batch)
        output.loss.backward()
        results.append((output, gradients(model)))
    (plain, expected), (checkpointed, got) = results
    assert torch.equal(plain.loss, checkpointed.loss)
    assert torch.equal(plain.query_mask, checkpointed.query_mask)
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-7, rtol=1e-5, msg=name)


def test_bfloat16_autocast_masks_and_trains(make_model, batch):
    model = make_model().train()
    exact = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    assert (~output.query_mask).sum(-1).tolist() == [1, 1, 1]
    assert output.action_loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, exact.loss, atol=0.05, rtol=0.05)
    grads = gradients(model)
    assert all(g.isfinite().all() for g in grads.values())
    model.zero_grad()
    exact.loss.backward()
    for name in ("adapter.0.weight", "expert.layers.0.cross_attn.k_proj.weight", "action_queries.weight"):
        a, b = grads[name].flatten(), dict(model.named_parameters())[name].grad.flatten()
        assert nn.functional.cosine_similarity(a, b, dim=0) > 0.98, name


def test_weights_in_bfloat16_train(make_model, batch):
    model = make_model().to(torch.bfloat16).train()
    inputs = {k: v.bfloat16() if k in ("pixel_values", "expert_pixel_values") else v for k, v in batch.items()}
    output = model(**inputs)
    output.loss.backward()
    assert output.loss.isfinite()
    assert (~output.query_mask).sum(-1).tolist() == [1, 1, 1]


def test_masks_in_training_only_and_only_when_switched_on(make_model, batch):
    model = make_model()
    evaluated = model(**batch)
    assert evaluated.query_mask is None
    model.train()
    masked = model(**batch)
    assert (~masked.query_mask).sum() == 3
    with torch.no_grad():
        frozen = model(**batch)
    assert frozen.query_mask is None
    torch.testing.assert_close(frozen.action_loss, evaluated.action_loss)
    assert masked.action_loss.item() != pytest.approx(evaluated.action_loss.item(), abs=1e-7)
    off = make_model(intention_decoupling=False).train()(**batch)
    assert off.query_mask is None
    torch.testing.assert_close(off.action_loss, evaluated.action_loss)
    kept = make_model(decoupling_quantile=0.0).train()(**batch)
    assert kept.query_mask.all()
    torch.testing.assert_close(kept.loss, off.loss)


def test_multimodal_batches_have_no_action_loss(tiny_model, tiny_processor, make_chat, batch):
    tiny_model.train()
    chats = tiny_processor.collate([make_chat(1), make_chat(2, answer="two red cubes")])
    output = tiny_model(**chats)
    assert output.action_loss is None
    assert output.query_mask is None
    assert output.loss.item() == output.lm_loss.item() > 0
    assert output.query_states.shape == (0, 8, 64)
    empty = {k: batch[k][:2] for k in ("state", "actions", "action_mask", "expert_pixel_values", "expert_view_mask")}
    output = tiny_model(**chats, **empty, embodiment_ids=torch.tensor([-1, -1]))
    assert output.action_loss.item() == 0.0
    assert output.loss.item() == output.lm_loss.item()
    tiny_model.eval()
    tiny_model.expert = None
    assert tiny_model(**chats).loss.item() == pytest.approx(output.lm_loss.item()), "the expert is not needed"


def test_every_kind_of_batch_reaches_every_weight(tiny_model, tiny_processor, make_item, make_chat, monkeypatch):
    """Data-parallel training waits for the gradient of every weight, so none may be left out of the graph."""
    monkeypatch.setattr(unused_weights, "in_step_with_others", lambda: True)
    tiny_model.train()
    text_only = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    kinds = {
        "robot": [make_item(1)],
        "robot with thought": [make_item(1, thought="reach")],
        "mixed": [make_item(1), make_chat(2)],
        "multi-modal only": [make_chat(2)],
        "text only": [{**text_only, "images": []}],
    }
    for kind, items in kinds.items():
        tiny_model.zero_grad()
        loss = tiny_model(**tiny_processor.collate(items)).loss
        loss.backward()
        missing = [n for n, p in tiny_model.named_parameters() if p.grad is None]
        assert not missing, f"{kind}: {missing}"
        assert loss.isfinite()
