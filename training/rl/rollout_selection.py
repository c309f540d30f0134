"""Which rollouts an update takes, and whether they were made by the policy that is trained."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from accelerate.utils import broadcast_object_list

from syvla.serving.contract.rollout_sampler import FLOW_SDE, RolloutSampler
from syvla.serving.recording.decision import Rollout
from syvla.serving.recording.episode_facts import EpisodeFacts

from .config import SyVLAPPOConfig
from .rollout_store import RolloutStore
from .run_state import RLState, staleness

logger = logging.getLogger(__name__)


def choose_rollouts(
    labeled: Sequence[EpisodeFacts], state: RLState, count: int, max_staleness: int
) -> tuple[list[str], list[str]]:
    """Rollouts for the next update, and those that turned out to be too old.

    Args:
        labeled: Sealed episodes with an outcome, oldest first.
        state: Knows which ones have been used and which policies were published.
        count: How many an update takes.
        max_staleness: Largest number of versions that a rollout's policy may be behind.

    Returns:
        (at most `count` names, names that are dropped from now on).

    Raises:
        ValueError: If a rollout was made by a policy that this run never published.
    """
    seen = {*state.consumed, *state.dropped}
    chosen: list[str] = []
    dropped: list[str] = []
    for facts in labeled:
        if facts.episode_id in seen:
            continue
        behind = staleness(state.versions, facts.policy_versions)
        if behind is None:
            raise ValueError(
                f"rollouts: episode {facts.episode_id} was made by policies {list(facts.policy_versions)}, which this run "
                f"never published (its last ones are {state.versions[-5:]}); serve the policies that this run publishes, and "
                "record into a folder of its own"
            )
        (dropped if behind > max_staleness else chosen).append(facts.episode_id)
    return chosen[:count], dropped


def wait_for_rollouts(store: RolloutStore, state: RLState, args: SyVLAPPOConfig, looks: bool) -> list[str] | None:
    """Names of the next update's rollouts, once there are enough; None after `wait_timeout_s`.

    Args:
        store: Where they come from.
        state: Takes note of rollouts that are dropped.
        args: [`SyVLAPPOConfig`].
        looks: Whether this is the process that looks; it tells all others.
    """
    deadline = None if args.wait_timeout_s is None else time.monotonic() + args.wait_timeout_s
    announced = False
    while True:
        message: list[Any] = [None, None, False]
        if looks:
            try:
                message[0] = choose_rollouts(store.labeled(), state, args.rollouts_per_update, args.max_staleness)
            except ValueError as error:  # all processes have to end
                message[1] = str(error)
            message[2] = deadline is not None and time.monotonic() > deadline
        broadcast_object_list(message)
        found, problem, late = message
        if problem is not None:
            raise ValueError(problem)
        chosen: list[str]
        chosen, dropped = found
        state.dropped_stale += len(dropped)
        state.dropped += dropped
        if len(chosen) == args.rollouts_per_update:
            return chosen
        if late:
            return None
        if not announced:
            logger.info("waiting: %d of %d labeled rollouts", len(chosen), args.rollouts_per_update)
            announced = True
        time.sleep(args.poll_seconds)


def wanted_sampler(args: SyVLAPPOConfig, model_config: Any) -> RolloutSampler | None:
    """How the run's rollouts have to be sampled; None: in any way."""
    if args.ratio_method != FLOW_SDE:
        return None
    return RolloutSampler(int(model_config.num_inference_steps), float(args.flow_sde_noise_level))


def check_family(rollouts: Sequence[Rollout], processor: Any, sampler: RolloutSampler | None) -> None:
    """Raises ValueError for rollouts of another robot or of a policy with other chunks, or without what is scored.

    Args:
        rollouts: Of an update.
        processor: Of the policy that is trained.
        sampler: How they must have been sampled; None: in any way.
    """
    for rollout in rollouts:
        name, entry = rollout.facts.episode_id, processor.embodiments.get(rollout.facts.embodiment)
        chunk = rollout.decisions[0].chunk.shape
        expected = None if entry is None else (processor.chunk_size, entry["action_dim"])
        if chunk != expected:
            raise ValueError(
                f"rollout {name}: robot {rollout.facts.embodiment!r} with chunks of shape {chunk}; this policy knows "
                f"{sorted(processor.embodiments)} and expects chunks of shape {expected}; record rollouts with the policy that "
                "is trained"
            )
        if rollout.facts.outcome not in (0, 1):
            raise ValueError(f"rollout {name}: outcome {rollout.facts.outcome!r}, expected 0 or 1; label it anew")
        if sampler is not None:
            _check_chains(rollout, sampler)


def _check_chains(rollout: Rollout, sampler: RolloutSampler) -> None:
    name = rollout.facts.episode_id
    for number, decision in enumerate(rollout.decisions):
        if not decision.valid.any():
            continue
        if decision.chain is None:
            raise ValueError(
                f"rollout {name}: decision {number} holds no step of a stochastic sampler, by which ratio_method=flow_sde "
                "scores rollouts; record them with `syvla-serve --rl-run` on policies that a run with this method published "
                "(start the run in an output_dir of its own), or use ratio_method=fpo"
            )
        if decision.chain.sampler != sampler:
            raise ValueError(
                f"rollout {name}: decision {number} was sampled with {decision.chain.sampler.describe()}, this run scores "
                f"steps of {sampler.describe()}; set flow_sde_noise_level (and the checkpoint's num_inference_steps) to what "
                "it was, or record rollouts anew"
            )
