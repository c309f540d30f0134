"""The samples of one pass of an update, collated for policy and value model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .advantage_labels import indicators
from .objective_settings import FLOW_MATCHING, IMITATING, learns_values
from .value_inputs import value_inputs

if TYPE_CHECKING:
    from syvla.serving.recording.decision import Decision

    from .update_data import UpdateData
    from .update_preparation import UpdatePreparation


def update_batch(
    preparation: UpdatePreparation, update: UpdateData, decisions: Sequence[Decision], number: int
) -> dict[str, Any]:
    """The rollout and expert samples of one pass of this process.

    Args:
        preparation: Of the run.
        update: What was prepared.
        decisions: Its decisions, which its plans number.
        number: Of the pass.
    """
    args, rank = preparation.args, preparation.args.process_index
    rollouts, experts = update.rollout_plan[number, rank], update.expert_plan[number, rank]
    if args.objective in IMITATING:
        rollouts = rollouts[:0]
    items = [decisions[i].item(thoughts=args.use_thoughts) for i in rollouts]
    items += [preparation.expert_item(int(update.expert_rows[i])) for i in experts]
    marks: dict[str, torch.Tensor] = {}
    if args.objective == "recap":
        positive = np.concatenate((update.positive[rollouts], np.ones(len(experts), bool)))  # experts always are
        marks["positive"] = torch.from_numpy(positive)
        dropped = np.concatenate((update.dropped_rollouts[number, rank], update.dropped_experts[number, rank]))
        words = indicators(positive, dropped)
        items = [{**item, "advantage": word} for item, word in zip(items, words, strict=True)]
    is_expert = [False] * len(rollouts) + [True] * len(experts)
    policy = preparation.policy_batch(items, is_expert)
    seeds = np.concatenate((update.seeds[rollouts], update.expert_seeds[experts]))
    value: dict[str, torch.Tensor] = {}
    if args.objective not in FLOW_MATCHING and learns_values(args):
        value = value_inputs(preparation.processor, preparation.model.value_model.config, items[: len(rollouts)])

    def both(mine: np.ndarray, theirs: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.concatenate((mine[rollouts], theirs[experts])))

    if args.objective == "nft":
        marks["old_velocities"] = both(update.old_velocities, update.expert_velocities)
    return {
        "policy": policy,
        "points": preparation.points(policy, seeds.tolist()),
        "value": value,
        "old_scores": both(update.old_scores, update.expert_scores),
        "advantages": both(update.advantages, update.expert_advantages),
        "is_expert": torch.tensor(is_expert),
        **marks,
        "returns": torch.from_numpy(update.returns[rollouts]),
        "old_values": torch.from_numpy(update.old_values[rollouts]),
    }
