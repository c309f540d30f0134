"""Baseline without flow: query states to an action chunk by one MLP, trained with an L1 loss.

As OpenVLA-OFT, which "decodes the resulting last hidden states into actions via an MLP" and "uses L1 loss" (paper,
appendix E). Selected by `action_head="l1_regression"`; it takes the place of the action expert, image encoder included.
"""

from __future__ import annotations

import torch
from torch import nn

from .action_expert import EncodedObservation
from .configuration_syvla import SyVLAConfig
from .expert_inputs import ExpertObservation
from .robot_encoders import all_rows, apply_per_embodiment, make_mlp


class RegressionCoders(nn.Module):
    """State encoder and action decoder of one robot."""

    def __init__(self, hidden_size: int, state_dim: int, action_dim: int) -> None:
        super().__init__()
        self.state_encoder = make_mlp(state_dim, hidden_size, hidden_size)
        self.action_decoder = make_mlp(hidden_size, hidden_size, action_dim)


class RegressionHead(nn.Module):
    """Predicts an action chunk from the control condition and the state, deterministically.

    The states of all queries and the robot's state (ours: OpenVLA-OFT feeds it to the VLM, ours does not see it) make one
    vector; an embedding names the step of the chunk, so that its length is no part of the decoder's shape.
    """

    coders = RegressionCoders

    def __init__(self, config: SyVLAConfig) -> None:
        super().__init__()
        hidden = config.expert_config.hidden_size
        self.config = config
        self.trunk = make_mlp((config.num_query_tokens + 1) * hidden, hidden, hidden)
        self.action_position_embedding = nn.Embedding(config.chunk_size, hidden)
        self.embodiments = nn.ModuleDict(
            {name: RegressionCoders(hidden, e["state_dim"], e["action_dim"]) for name, e in config.embodiments.items()}
        )

    def encode_observation(self, observation: ExpertObservation) -> EncodedObservation:
        """As the action expert's, without images: this head reads none."""
        return EncodedObservation(observation, image_features=observation.pixel_values[:, :, :0], prefix=None)

    def forward(self, condition: torch.Tensor, observation: ExpertObservation) -> torch.Tensor:
        """Normalized actions.

        Args:
            condition: C in the paper, (B, N, D).
            observation: Its state and robot are read.

        Returns:
            (B, T, D_action_max), zero beyond the embodiment's own dimensions.
        """
        state, embodiment_ids = observation.state, observation.embodiment_ids
        robots, hidden = self.config.embodiments, self.config.expert_config.hidden_size
        encoders = {name: coders.state_encoder for name, coders in self.embodiments.items()}
        decoders = {name: coders.action_decoder for name, coders in self.embodiments.items()}
        state_token = apply_per_embodiment(encoders, robots, state[:, None, :], embodiment_ids, hidden)
        x = self.trunk(torch.cat((condition, state_token), dim=1).flatten(1))  # (B, D)
        x = x[:, None, :] + all_rows(self.action_position_embedding, x.device)  # (B, T, D)
        return apply_per_embodiment(decoders, robots, x, embodiment_ids, self.config.max_action_dim)


def l1_loss(predicted: torch.Tensor, actions: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
    """Per-sample mean absolute error over the valid entries only.

    Args:
        predicted: (B, T', D); a chunk longer than `actions` is cut.
        actions: Normalized actions, (B, T, D).
        action_mask: bool (B, T, D), True where step and dimension are real.

    Returns:
        float32 (B,). A sample without any valid entry has loss 0.
    """
    error = (predicted[:, : actions.shape[1]].float() - actions.float()).abs()
    error = torch.where(action_mask, error, torch.zeros_like(error))
    return error.sum(dim=(1, 2)) / action_mask.sum(dim=(1, 2)).clamp(min=1)
