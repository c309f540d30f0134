"""The action expert: cached flow steps against a plain computation of the whole sequence, dimensions, messages."""

import math

import pytest
import torch
import torch.nn.functional as F
from image_encoders import SIGLIP
from torch import nn

from syvla.modeling_syvla import SyVLAConfig, SyVLAExpertConfig
from syvla.modeling_syvla.action_expert import ActionExpert, ExpertContext, ExpertRMSNorm
from syvla.modeling_syvla.expert_inputs import ExpertObservation

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8, "ff_multiple_of": 8}


def make_expert(**expert) -> ActionExpert:
    torch.manual_seed(0)
    config = SyVLAConfig.tiny(
        expert_config=SyVLAExpertConfig(**{**SMALL, **expert}),
        embodiments={"tabletop": {"state_dim": 5, "action_dim": 4}},
    )
    expert = ActionExpert(config).eval()
    for module in expert.modules():  # norms at one would hide a forgotten norm weight
        if isinstance(module, ExpertRMSNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return expert


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "pixels": draw(2, 3, 3, 32, 32),
        "view_mask": torch.tensor([[True, True, True], [True, False, True]]),
        "state": draw(2, 5),
        "ids": torch.zeros(2, dtype=torch.long),
        "condition": draw(2, 8, 32),
        "noisy": draw(2, 8, 4),
        "timestep": torch.tensor([0.1, 0.7]),
    }


def context_of(expert: ActionExpert, inputs) -> ExpertContext:
    seen = ExpertObservation(inputs["state"], inputs["ids"], inputs["pixels"], inputs["view_mask"])
    return expert.encode_context(expert.encode_observation(seen), inputs["condition"])


def run(expert: ActionExpert, inputs) -> torch.Tensor:
    context = context_of(expert, inputs)
    return expert.predict_velocity(inputs["noisy"], inputs["timestep"], context)


# ---------------------------------------------------------------- the same, written plainly


def rms_norm(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def attend(attention, x, source, allowed, heads=4):
    """Softmax attention, head by head; allowed: bool (B, queries, keys)."""
    out = []
    width = attention.head_dim
    for h in range(heads):
        rows = slice(h * width, (h + 1) * width)
        q, k, v = (
            y @ p.weight[rows].T
            for y, p in ((x, attention.q_proj), (source, attention.k_proj), (source, attention.v_proj))
        )
        scores = (q @ k.transpose(1, 2) / math.sqrt(width)).masked_fill(~allowed, -torch.inf)
        out.append(scores.softmax(-1) @ v)
    return torch.cat(out, dim=-1) @ attention.o_proj.weight.T


def reference(expert: ActionExpert, inputs) -> torch.Tensor:
    """Velocity by one pass over the whole sequence [images, state, timestep, actions] with an explicit mask."""
    config = expert.config.expert_config
    coders = expert.embodiments["tabletop"]
    batch, steps = inputs["noisy"].shape[:2]
    features = expert.encode_images(inputs["pixels"], inputs["view_mask"])
    images = expert.image_proj(features) + expert.view_embedding.weight[None, :, None]
    per_view = images.shape[2]
    angle = inputs["timestep"][:, None] * torch.tensor(
        [2 * math.pi / (4e-3 * (4.0 / 4e-3) ** (i / 15)) for i in range(16)]
    )
    time = expert.time_mlp(torch.cat((angle.sin(), angle.cos()), dim=-1))
    actions = coders.action_encoder(inputs["noisy"]) + expert.action_position_embedding.weight[:steps]
    x = torch.cat((images.flatten(1, 2), coders.state_encoder(inputs["state"])[:, None], time[:, None], actions), dim=1)
    length, prefix = x.shape[1], 3 * per_view + 1
    real = torch.ones(batch, length, dtype=torch.bool)
    real[:, : 3 * per_view] = inputs["view_mask"].repeat_interleave(per_view, dim=1)
    block = (torch.arange(length) >= prefix).long()
    allowed = (block[None, :, None] >= block[None, None, :]) & real[:, None, :]
    every = torch.ones(batch, length, inputs["condition"].shape[1], dtype=torch.bool)
    sees = torch.ones(length, dtype=torch.bool)
    if config.cross_attention_scope == "suffix":
        sees = block == 1
    for layer in expert.layers:
        normed = rms_norm(x, layer.self_attn_norm)
        x = x + attend(layer.self_attn, normed, normed, allowed)
        crossed = attend(layer.cross_attn, rms_norm(x, layer.cross_attn_norm), inputs["condition"], every)
        x = x + torch.where(sees[None, :, None], crossed, torch.zeros(()))
        normed = rms_norm(x, layer.mlp_norm)
        if config.mlp_type == "swiglu":
            gate = normed @ layer.mlp.gate_proj.weight.T
            hidden = gate * gate.sigmoid() * (normed @ layer.mlp.up_proj.weight.T)
        else:
            hidden = F.gelu(normed @ layer.mlp.up_proj.weight.T)
        x = x + hidden @ layer.mlp.down_proj.weight.T
    return coders.action_decoder(rms_norm(x[:, -steps:], expert.norm))


@torch.no_grad()
@pytest.mark.parametrize("scope", ["all", "suffix"])
@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_cached_flow_step_equals_the_whole_sequence_at_once(inputs, scope, mlp):
    expert = make_expert(cross_attention_scope=scope, mlp_type=mlp)
    torch.testing.assert_close(run(expert, inputs), reference(expert, inputs), atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["all", "suffix"])
def test_denoising_with_one_context_equals_recomputing_every_step(inputs, scope):
    expert = make_expert(cross_attention_scope=scope)
    context = context_of(expert, inputs)
    cached = plain = inputs["noisy"]
    for step in range(5):
        t = torch.full((2,), step / 5)
        cached = cached + expert.predict_velocity(cached, t, context) / 5
        plain = plain + reference(expert, {**inputs, "noisy": plain, "timestep": t}) / 5
    torch.testing.assert_close(cached, plain, atol=5e-5, rtol=0)


@torch.no_grad()
def test_every_input_moves_the_velocity(inputs):
    expert = make_expert()
    before = run(expert, inputs)
    for name in ("pixels", "state", "condition", "noisy", "timestep"):
        after = run(expert, {**inputs, name: inputs[name].roll(1, dims=0)})
        assert (after - before).abs().amax(dim=(1, 2)).min() > 1e-4, name


@torch.no_grad()
def test_prefix_depends_on_the_condition_only_with_scope_all(inputs):
    other = {**inputs, "condition": -inputs["condition"]}
    for scope, same in (("all", False), ("suffix", True)):
        expert = make_expert(cross_attention_scope=scope)
        keys = [context_of(expert, x).prefix[-1][0] for x in (inputs, other)]
        assert torch.equal(*keys) == same


@torch.no_grad()
def test_views_are_told_apart(inputs):
    """The same pictures in swapped slots mean something else: the left wrist is not the right one."""
    expert = make_expert()
    swapped = {**inputs, "view_mask": torch.ones(2, 3, dtype=torch.bool)}
    straight = run(expert, swapped)
    swapped["pixels"] = inputs["pixels"][:, [0, 2, 1]]
    assert (run(expert, swapped) - straight).abs().max() > 1e-4


@torch.no_grad()
def test_a_convolutional_backbone_gets_a_sense_of_place(inputs):
    """Convolutions and a set of tokens cannot tell where a bright square is; the added code can."""
    expert = make_expert()
    images = torch.zeros(2, 3, 3, 32, 32)
    images[0, :, :, 8:16, 8:16] = 1.0
    images[1, :, :, 16:24, 16:24] = 1.0
    same = {key: value[:1].expand_as(value) for key, value in inputs.items() if key not in ("pixels", "view_mask")}
    views = torch.ones(2, 3, dtype=torch.bool)
    a, b = run(expert, {**same, "pixels": images, "view_mask": views})
    assert (a - b).abs().max() > 1e-4


@torch.no_grad()
def test_shorter_chunks_run_and_longer_ones_are_refused(inputs):
    expert = make_expert()
    short = {**inputs, "noisy": inputs["noisy"][:, :3]}
    torch.testing.assert_close(run(expert, short), reference(expert, short), atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match="at most chunk_size=8 steps, got 9"):
        run(expert, {**inputs, "noisy": torch.zeros(2, 9, 4)})


@torch.no_grad()
def test_unknown_embodiment_ids_are_refused_even_beside_known_ones(inputs):
    expert = make_expert()
    for ids in ([7, 7], [0, 7], [-1, 0]):
        with pytest.raises(ValueError, match="embodiment_ids"):
            run(expert, {**inputs, "ids": torch.tensor(ids)})


@pytest.mark.parametrize(
    "vision",
    [
        SIGLIP,
        {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28},
    ],
    ids=lambda v: v["model_type"],
)
@torch.no_grad()
def test_vision_transformers_serve_as_image_encoder(inputs, vision):
    torch.manual_seed(0)
    config = SyVLAConfig.tiny(
        expert_config=SyVLAExpertConfig(**SMALL),
        expert_vision_config=vision,
        embodiments={"tabletop": {"state_dim": 5, "action_dim": 4}},
    )
    expert = ActionExpert(config).eval()
    side = config.expert_image_size
    case = {**inputs, "pixels": inputs["pixels"][..., :side, :side]}
    torch.testing.assert_close(run(expert, case), reference(expert, case), atol=2e-5, rtol=0)


def test_dropout_acts_in_training_only(inputs):
    expert = make_expert(attention_dropout=0.5)
    with torch.no_grad():
        assert torch.equal(run(expert, inputs), run(expert, inputs))
        expert.train()
        assert not torch.equal(run(expert, inputs), run(expert, inputs))
