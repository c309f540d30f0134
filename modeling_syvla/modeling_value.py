"""The value model: expected return of an observation, for the advantages of reinforcement learning.

Paper, appendix A: "a value model of about 100M parameters with a Siglip encoder and a transformer network to predict the
value of current state based on observation". It reads what the action expert reads, images and state, and, where its config
says so, the instruction (ours: the paper trains one value model per task): one token per byte, so that it needs no vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput, can_return_tuple

from .action_expert import ExpertAttention, ExpertMLP, ExpertRMSNorm
from .configuration_syvla import SyVLAExpertConfig
from .configuration_value import SyVLAValueConfig
from .expert_inputs import ExpertObservation
from .pretrained import StrictPreTrainedModel
from .robot_encoders import (
    all_rows,
    apply_per_embodiment,
    encode_views,
    feature_width,
    make_mlp,
    make_vision_tower,
    project_views,
)
from .wrapped_vlm import require_read

# Not used here, but by the files above: transformers 5.4 fetches only those files of a checkpoint that its entry file
# imports itself, not what they import in turn. `test_remote_code` says which line is missing or too many.
from .embodiment_fields import EmbodimentsMixin  # noqa: F401  isort: skip
from .flow_matching import interpolate  # noqa: F401  isort: skip
from .consistent_design import require_consistent_design  # noqa: F401  isort: skip
from .flow_solver import FlowSolver  # noqa: F401  isort: skip
from .inference_linear import FusedProjections  # noqa: F401  isort: skip
from .known_actions import known_steps  # noqa: F401  isort: skip
from .own_fields import OwnModelTypeMixin  # noqa: F401  isort: skip
from .packed_weights import PackedLinear  # noqa: F401  isort: skip
from .static_thoughts import StaticThoughts  # noqa: F401  isort: skip
from .wrapped_vlm import WrappedVLMMixin  # noqa: F401  isort: skip

NO_BYTE = 256
"""Stands after the end of an instruction."""

# In the same batch of the processor; the value model reads no tokens of text and no actions.
_TEXT_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw", "labels")
_OF_THE_POLICY = frozenset((*_TEXT_INPUTS, "actions", "action_mask"))


def encode_instructions(texts: Sequence[str], length: int) -> torch.Tensor:
    """Instructions as the value model reads them: bytes of UTF-8, then `NO_BYTE`, int64 (len(texts), length).

    Of a longer one the first and the last half of `length` are kept.
    """
    encoded = torch.full((len(texts), length), NO_BYTE)
    for row, text in enumerate(texts):
        data = text.encode()
        if len(data) > length:
            data = data[: length - length // 2] + data[len(data) - length // 2 :]
        encoded[row, : len(data)] = torch.tensor(list(data))
    return encoded


@dataclass
class SyVLAValueOutput(ModelOutput):
    """Output of [`SyVLAValueModel.forward`].

    Attributes:
        loss: Mean squared error to `returns`, float32; None without them.
        value: Expected return, float32 (B,).
        hidden_states: The tokens and every layer's output, each (B, 2 + V * P, D), if asked for; the last one normalized.
    """

    loss: torch.Tensor | None = None
    value: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class ValueLayer(GradientCheckpointingLayer):
    """Self-attention and MLP; pre-norm."""

    def __init__(self, config: SyVLAExpertConfig) -> None:
        super().__init__()
        self.self_attn_norm = ExpertRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = ExpertAttention(config)
        self.mlp_norm = ExpertRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = ExpertMLP(config)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x: (B, tokens, D); mask: bool (B, 1, 1, tokens), True = attend."""
        normed = self.self_attn_norm(x)
        x = x + self.self_attn(normed, self.self_attn.key_value(normed), mask)
        out: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class SyVLAValueModel(StrictPreTrainedModel):
    """SigLIP over the views, a transformer over [value token, state token, image tokens, instruction], a scalar head."""

    config_class = SyVLAValueConfig
    base_model_prefix = "value"
    main_input_name = "expert_pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple, as in the models of transformers
    model_tags = ["robotics", "reinforcement-learning", "value-model", "syvla"]
    _no_split_modules = ["ValueLayer", "SiglipEncoderLayer"]
    auto_map = {
        "AutoConfig": "configuration_value.SyVLAValueConfig",
        "AutoModel": "modeling_value.SyVLAValueModel",
    }

    def __init__(self, config: SyVLAValueConfig) -> None:
        super().__init__(config)
        hidden, layer = config.hidden_size, config.layer_config()
        self.vision_tower = make_vision_tower(config.vision_config)
        self.image_proj = nn.Linear(feature_width(config.vision_config), hidden)
        self.view_embedding = nn.Embedding(len(config.views), hidden)
        self.value_token = nn.Embedding(1, hidden)
        if config.instruction_bytes:
            self.byte_embedding = nn.Embedding(NO_BYTE + 1, hidden)
            self.byte_position = nn.Embedding(config.instruction_bytes, hidden)
        self.state_encoders = nn.ModuleDict(
            {name: make_mlp(e["state_dim"], hidden, hidden) for name, e in config.embodiments.items()}
        )
        self.layers = nn.ModuleList(ValueLayer(layer) for _ in range(config.num_hidden_layers))
        self.norm = ExpertRMSNorm(hidden, eps=config.rms_norm_eps)
        self.value_head = make_mlp(hidden, hidden, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        expert_pixel_values: torch.Tensor,
        state: torch.Tensor,
        embodiment_ids: torch.Tensor,
        expert_view_mask: torch.Tensor | None = None,
        instruction: torch.Tensor | None = None,
        returns: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> SyVLAValueOutput:
        """Values of a batch of observations.

        Args:
            expert_pixel_values: (B, V, 3, h, w).
            state: Normalized, zero-padded, (B, D_state_max).
            embodiment_ids: (B,).
            expert_view_mask: bool (B, V); what a missing view holds does not matter. None: all views present.
            instruction: Of `encode_instructions`, int64 (B, config.instruction_bytes); None in a model that reads none.
            returns: Targets, for example Monte-Carlo returns, (B,).
            return_loss: Whether `returns` give a loss. By this name `Trainer` knows that there is one to evaluate.
            output_hidden_states: Whether to return those of the transformer; None: what the configuration says.
            kwargs: `return_dict=False` for a tuple; and what the policy alone reads of the processor's batch.

        Returns:
            [`SyVLAValueOutput`].

        Raises:
            TypeError: If an argument is unknown.
            ValueError: If shapes disagree or a robot is unknown.
        """
        require_read(type(self).__name__, {name: x for name, x in kwargs.items() if name not in _OF_THE_POLICY})
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        count = len(expert_pixel_values)
        view_mask = ExpertObservation.checked(
            self.config, count, state, embodiment_ids, expert_pixel_values, expert_view_mask
        ).view_mask
        features = encode_views(self.vision_tower, expert_pixel_values, view_mask, self.image_proj.bias.dtype)
        images = (
            project_views(self.image_proj, features) + all_rows(self.view_embedding, state.device)[:, None, :]
        )  # (B, V, P, D)
        state_token = apply_per_embodiment(
            self.state_encoders, self.config.embodiments, state[:, None, :], embodiment_ids, self.config.hidden_size
        )
        value_token = all_rows(self.value_token, state.device).expand(count, 1, -1)
        x = torch.cat((value_token, state_token, images.flatten(1, 2)), dim=1)  # (B, 2 + V * P, D)
        seen = view_mask[:, :, None].expand(-1, -1, features.shape[2]).flatten(1)
        seen = F.pad(seen, (2, 0), value=True)
        text = self._instruction_tokens(instruction, count)
        if instruction is not None and text is not None:
            x, seen = torch.cat((x, text), dim=1), torch.cat((seen, instruction.ne(NO_BYTE)), dim=1)
        mask = seen[:, None, None, :]
        states = []
        for layer in self.layers:
            if wanted:
                states.append(x)
            x = layer(x, mask)
        x = self.norm(x if wanted else x[:, :1])
        values = self.value_head(x[:, 0]).squeeze(-1).float()
        hidden_states = (*states, x) if wanted else None
        if returns is None or not return_loss:
            return SyVLAValueOutput(value=values, hidden_states=hidden_states)
        if returns.shape != values.shape:
            raise ValueError(f"returns: expected shape {tuple(values.shape)}, got {tuple(returns.shape)}")
        loss = F.mse_loss(values, returns.float())
        if self.training:  # data-parallel training waits for the gradient of every weight, absent robots' as well
            loss = loss + sum(0.0 * p.sum() for p in self.state_encoders.parameters())
        return SyVLAValueOutput(loss=loss, value=values, hidden_states=hidden_states)

    def get_input_embeddings(self) -> nn.Module:
        """What makes tokens of the images, as the image encoders of transformers say it of themselves; no table."""
        return self.image_proj

    def set_input_embeddings(self, value: Any) -> None:
        self.image_proj = value

    def _instruction_tokens(self, instruction: torch.Tensor | None, count: int) -> torch.Tensor | None:
        """(B, L, D), None in a model that reads no instruction."""
        length = self.config.instruction_bytes
        expected = (count, length) if length else None
        found = None if instruction is None else tuple(instruction.shape)
        if found != expected:
            raise ValueError(
                f"instruction: expected shape {expected} (instruction_bytes is {length}), got {found}; pass "
                "encode_instructions(texts, config.instruction_bytes), or leave it out where that is 0"
            )
        if instruction is None:
            return None
        tokens: torch.Tensor = self.byte_embedding(instruction) + all_rows(self.byte_position, instruction.device)
        return tokens

    def add_embodiment(self, name: str, state_dim: int, action_dim: int) -> None:
        """Give the model a state encoder for a further robot; all other weights stay as they are."""
        known = name in self.config.embodiments
        self.config.add_embodiment(name, state_dim, action_dim)
        if known:
            return
        encoder = make_mlp(state_dim, self.config.hidden_size, self.config.hidden_size)
        encoder.apply(self._init_weights)
        self.state_encoders[name] = encoder.to(self.image_proj.bias)  # its device and dtype
