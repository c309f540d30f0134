"""Which rollouts an update takes, and why others are set aside."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate.utils import broadcast_object_list

from syvla.modeling_syvla.flow_solver import require_uniform_euler
from syvla.serving.contract.rollout_sampler import FLOW_SDE, RolloutSampler
from syvla.serving.recording.decision import Rollout
from syvla.serving.recording.episode_facts import EpisodeFacts, is_reward
from syvla.serving.rl.ledger import AWAITING, CLAIMED, OPEN, SEALED, SET_ASIDE, Ledger, LedgerEntry, RunLedger

from .config import SyVLAPPOConfig
from .rollout_store import RolloutStore
from .run_state import RLState, staleness

logger = logging.getLogger(__name__)

TOO_OLD = "too old"
"""Beginning of the reason of rollouts that a larger `max_staleness` makes usable."""


@dataclass(frozen=True)
class Selection:
    """What a look at the rollouts came to.

    Attributes:
        chosen: Names for the next update; claimed if they are enough.
        rolled_back: Whether the run was brought back to an older policy, which comes first.
        late: Whether the patience is at its end.
        unusable: Name to reason, of rollouts that were set aside now.
    """

    chosen: list[str] = field(default_factory=list)
    rolled_back: bool = False
    late: bool = False
    unusable: dict[str, str] = field(default_factory=dict)


def choose_rollouts(
    labeled: Sequence[EpisodeFacts], known: RunLedger, state: RLState, count: int, max_staleness: int
) -> tuple[list[str], dict[str, str]]:
    """Rollouts for the next update, and those that cannot be used as things are.

    Args:
        labeled: Sealed episodes with an outcome, oldest first.
        known: What the ledger says of them.
        state: Knows which policies were published, and which update comes next.
        count: How many an update takes.
        max_staleness: Largest number of versions that a rollout's policy may be behind.

    Returns:
        (at most `count` names, name to the reason why it cannot be used). One that was set aside as too old before is looked
        at again, since `max_staleness` may have been raised.
    """
    chosen: list[str] = []
    unusable: dict[str, str] = {}
    for facts in labeled:
        name = facts.episode_id
        entry = known.rollouts.get(name, LedgerEntry(state=SEALED))
        again = entry.state == SET_ASIDE and entry.why.startswith(TOO_OLD)
        mine = entry.state == CLAIMED and entry.update == state.updates
        if name in state.consumed or not (again or mine or entry.state in (OPEN, AWAITING, SEALED)):
            continue
        why = None if entry.accepted else _age_problem(facts, state, max_staleness)
        if why is None:
            chosen.append(name)
        elif not again or entry.why != why:
            unusable[name] = why
    return chosen[:count], unusable


def _age_problem(facts: EpisodeFacts, state: RLState, max_staleness: int) -> str | None:
    """Why a rollout's policies do not fit the present one; None if they do."""
    behind = staleness(state.line, facts.policy_versions)
    if behind is not None and behind <= max_staleness:
        return None
    if behind is not None:
        return (
            f"{TOO_OLD}: {behind} version(s) behind, max_staleness is {max_staleness}; raise it, or restore the rollout"
        )
    if facts.policy_versions and set(facts.policy_versions) <= set(state.versions):
        return "rolled back: its policy is not in the line of the present one; restore the rollout to use it anyway"
    return (
        f"foreign: made by policies {list(facts.policy_versions)}, which this run never published (its last ones are "
        f"{state.versions[-5:]}); serve the policies that this run publishes, and record into a folder of its own"
    )


class RolloutSelection:
    """Looks for the rollouts of the next update and claims them in the ledger. On the process that looks.

    Args:
        store: Where they come from.
        ledger: Of the run.
        state: Of the run.
        args: [`SyVLAPPOConfig`].
        problem: Why a rollout cannot be used by this trainer, whatever its age; None if it can.
    """

    def __init__(
        self,
        store: RolloutStore,
        ledger: Ledger,
        state: RLState,
        args: SyVLAPPOConfig,
        problem: Callable[[Rollout], str | None],
    ) -> None:
        self.store, self.ledger, self.state, self.args, self._problem = store, ledger, state, args, problem
        self._fitting: set[str] = set()

    def look(self) -> Selection:
        """Sets aside what cannot be used, with the reason, and claims an update's rollouts if there are enough."""
        labeled, wanted = self.store.labeled(), self.args.rollouts_per_update
        unusable: dict[str, str] = {}
        while True:
            with (
                self.ledger.exclusive() as known
            ):  # no label changes, nothing is discarded and no rollback comes in between
                if len(known.rollbacks) > self.state.rollbacks:
                    return Selection(rolled_back=True)
                chosen, old = choose_rollouts(labeled, known, self.state, wanted, self.args.accepted_staleness)
                for name, why in old.items():
                    self._set_aside(name, why)
                unusable |= old
                unread = [name for name in chosen if name not in self._fitting]
                if not unread:
                    if len(chosen) == wanted:
                        self.ledger.claim(self.state.updates, chosen)
                    return Selection(chosen, unusable=unusable)
            for name in unread:  # outside of the lock, since it reads files
                problem = self._fit_problem(name)
                if problem is None:
                    self._fitting.add(name)
                else:
                    self._set_aside(name, problem)
                    unusable[name] = problem
            labeled = [facts for facts in labeled if facts.episode_id not in unusable]

    def _fit_problem(self, name: str) -> str | None:
        try:
            (rollout,) = self.store.load([name])
            return self._problem(rollout)
        except (ValueError, OSError) as error:
            return f"unreadable: {error}"

    def _set_aside(self, name: str, why: str) -> None:
        logger.error("rollout %s is set aside: %s", name, why)
        self.ledger.set_aside(name, why)


def wait_for_rollouts(
    look: Callable[[], Selection] | None,
    args: SyVLAPPOConfig,
) -> Selection:
    """Waits until there are enough rollouts, a rollback, or `wait_timeout_s` is over.

    Args:
        look: On the process that looks, which tells all others; None there.
        args: [`SyVLAPPOConfig`].

    Raises:
        ValueError: The patience is at its end, and not one of the rollouts that came could be used.
    """
    deadline = None if args.wait_timeout_s is None else time.monotonic() + args.wait_timeout_s
    unusable: dict[str, str] = {}
    shown = -1
    while True:
        message: list[Any] = [None, None]
        if look is not None:
            try:
                late = deadline is not None and time.monotonic() > deadline
                message[0] = replace(look(), late=late)
            except (ValueError, OSError) as error:  # all processes have to end
                message[1] = str(error)
        broadcast_object_list(message)
        found, problem = message
        if problem is not None:
            raise ValueError(problem)
        unusable |= {name: why for name, why in found.unusable.items() if not why.startswith(TOO_OLD)}
        if found.rolled_back or len(found.chosen) == args.rollouts_per_update:
            return found  # type: ignore[no-any-return]
        if found.late:
            if unusable and not found.chosen:
                name, why = next(iter(unusable.items()))
                raise ValueError(f"rollouts: none can be used, {len(unusable)} are set aside; {name}: {why}")
            return found  # type: ignore[no-any-return]
        if len(found.chosen) != shown:
            shown = len(found.chosen)
            logger.info("waiting: %d of %d labeled rollouts", shown, args.rollouts_per_update)
        time.sleep(args.poll_seconds)


def wanted_sampler(args: SyVLAPPOConfig, model_config: Any) -> RolloutSampler | None:
    """How the run's rollouts have to be sampled; None: in any way."""
    if args.ratio_method != FLOW_SDE:
        return None
    require_uniform_euler(model_config, f"ratio_method={FLOW_SDE}")
    return RolloutSampler(int(model_config.num_inference_steps), float(args.flow_sde_noise_level))


def family_problem(
    rollout: Rollout,
    processor: Any,
    sampler: RolloutSampler | None,
    tasks: Sequence[str] | None = None,
    *,
    labels: bool = True,
) -> str | None:
    """Why a rollout is of another robot or of a policy with other chunks, or lacks what is scored; None if it fits.

    Args:
        rollout: Labeled.
        processor: Of the policy that is trained.
        sampler: How it must have been sampled; None: in any way.
        tasks: Instructions of which there are expert samples; None: any will do.
        labels: Whether it needs an outcome.
    """
    entry = processor.embodiments.get(rollout.facts.embodiment)
    chunk = rollout.decisions[0].chunk.shape
    expected = None if entry is None else (processor.chunk_size, entry["action_dim"])
    if chunk != expected:
        return (
            f"robot {rollout.facts.embodiment!r} with chunks of shape {chunk}; this policy knows "
            f"{sorted(processor.embodiments)} and expects chunks of shape {expected}; record rollouts with the policy that "
            "is trained"
        )
    if not is_reward(rollout.facts.outcome) and (labels or rollout.facts.outcome is not None):
        return f"outcome {rollout.facts.outcome!r}, expected 0 to 1; label it anew"
    unknown = [d.instruction for d in rollout.decisions if tasks is not None and d.instruction not in tasks]
    if unknown:
        assert tasks is not None
        return (
            f"there are no demonstrations of its task {unknown[0]!r}, only of {list(tasks)[:10]}; add demonstrations, or "
            "draw expert samples from all tasks (same_task=False)"
        )
    return None if sampler is None else _chain_problem(rollout, sampler)


def _chain_problem(rollout: Rollout, sampler: RolloutSampler) -> str | None:
    for number, decision in enumerate(rollout.decisions):
        if not decision.valid.any():
            continue
        if decision.chain is None:
            return (
                f"decision {number} holds no step of a stochastic sampler, by which ratio_method=flow_sde "
                "scores rollouts; record them with `syvla-serve --rl-run` on policies that a run with this method published "
                "(start the run in an output_dir of its own), or use ratio_method=fpo"
            )
        if decision.chain.sampler != sampler:
            return (
                f"decision {number} was sampled with {decision.chain.sampler.describe()}, this run scores "
                f"steps of {sampler.describe()}; set flow_sde_noise_level (and the checkpoint's num_inference_steps) to what "
                "it was, or record rollouts anew"
            )
    return None
