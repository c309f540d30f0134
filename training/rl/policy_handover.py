"""What trainer and server tell each other: which rollouts are used, which policy comes next, and which one to go back to."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list

from syvla.serving.policies.loading import weights_digest
from syvla.serving.rl.ledger import Ledger
from syvla.serving.rl.progress import RunSize

from .checkpoint import merged_policy, prompts_as_trained, return_to_policy, save_to_return
from .rollout_selection import wanted_sampler
from .run_reconciliation import reconcile, settle

if TYPE_CHECKING:
    from syvla.serving.recording.decision import Decision

    from .config import SyVLAPPOConfig
    from .expert_samples import ExpertSamples
    from .policy_and_value import PolicyAndValue
    from .policy_publisher import PolicyPublisher
    from .run_state import RLState
    from .update_data import UpdateData
    from .weight_snapshot import WeightSnapshot

logger = logging.getLogger(__name__)


class PolicyHandoverMixin:
    """The part of [`SyVLAPPOTrainer`] that publishes policies, keeps the ledger, and follows rollbacks.

    Attributes:
        ledger: Of the run; None on all processes but the first.
        publisher: Where policies go.
        rl: What the run remembers.
        update: The update that is under way.
    """

    args: SyVLAPPOConfig
    ledger: Ledger | None
    publisher: PolicyPublisher
    experts: ExpertSamples
    processing_class: Any
    accelerator: Any
    deepspeed: Any
    optimizer: torch.optim.Optimizer
    rl: RLState
    update: UpdateData | None
    _decisions: list[Decision]
    _snapshot: WeightSnapshot | None
    _skipped_in_a_row: int
    _began_conditioned: bool
    model: Any

    @property
    def _module(self) -> PolicyAndValue:
        """Policy and value model without wrappers."""
        module: PolicyAndValue = self.accelerator.unwrap_model(self.model)
        return module

    @property
    def instructions(self) -> tuple[str, ...] | None:
        """Tasks that rollouts may have; None: any."""
        needed = self.args.expert_mode != "none" and self.args.same_task
        return self.experts.instructions if needed else None

    @property
    def conditioned(self) -> bool:
        """Whether the present weights have learned an advantage indicator: before their first update with it they have not."""
        if self.args.objective != "recap":
            return self._began_conditioned
        return self._began_conditioned or self.rl.version > 0 or self.update is not None

    def start(self) -> None:
        """Before the first step: the first policy is published, or the one that a crash kept from it."""
        args = self.args
        if not self.rl.versions:
            self.rl.add_version(self._policy_version())
            self.rl.baseline_cfm = self.heldout_cfm()  # type: ignore[attr-defined]
            self.rl.retrieval = self.experts.fingerprints
        if self.ledger is not None:
            size = RunSize(args.rollouts_per_update, args.max_rl_updates, args.accepted_staleness, self.instructions)
            size.save(Path(args.output_dir))
            reconcile(self.ledger, self.rl, self.update.episode_ids if self.update is not None else ())
        self.accelerator.wait_for_everyone()
        if self._rollback_waits():
            self._go_back()
        self._publish()

    def _publish(self) -> None:
        """Tell the ledger what the checkpoint on disk has used, and hand the newest policy over that it knows of."""
        overtaken = [False]
        if self.ledger is not None:
            with self.ledger.exclusive() as known:  # no episode begins between what was used and what comes next
                settle(self.ledger, known, self.rl)
                version, policy_version = self.rl.version, self.rl.versions[-1]
                overtaken[0] = len(known.rollbacks) > self.rl.rollbacks
                if not (self.rl.published or overtaken[0] or known.versions[version:] == [policy_version]):
                    self.ledger.announce(version, policy_version, self.rl.parent)
        broadcast_object_list(overtaken)
        if self.rl.published:
            return
        if overtaken[0]:
            self.rl.published = True
            self._go_back()
            return
        if self.ledger is not None:
            policy = merged_policy(self._module.policy)

            def save(folder: Path) -> None:
                with prompts_as_trained(policy, self.processing_class, self.conditioned):
                    policy.save_pretrained(folder)
                    self.processing_class.save_pretrained(folder)
                save_to_return(self._module.policy, folder)
                if (sampler := wanted_sampler(self.args, policy.config)) is not None:
                    sampler.save(folder)

            self.publisher.left = self.rl.left
            self.publisher.publish(self.rl.version, self.rl.versions[-1], save)
        self.accelerator.wait_for_everyone()
        self.rl.published = True

    def _warn(self, text: str) -> None:
        """Logs what people have to know, and leaves it for the page."""
        logger.error("%s", text)
        if self.ledger is not None:
            self.ledger.note(text)

    def _rollback_waits(self) -> bool:
        """Whether the run was brought back to an older policy, and this trainer has yet to follow."""
        waits = [self.ledger is not None and len(self.ledger.read().rollbacks) > self.rl.rollbacks]
        broadcast_object_list(waits)
        return waits[0]

    def _go_back(self) -> None:
        """Go on from the weights of the older policy that the ledger names; an update that is under way is given up.

        Raises:
            ValueError: That policy is not kept, or not whole.
        """
        message: list[Any] = [None, ""]
        if self.ledger is not None:
            with self.ledger.exclusive() as known:
                if self.update is not None:
                    self.ledger.release(self.update.episode_ids, "its update was given up for a rollback")
                assert known.current is not None
                message[0] = (known.current, known.lineage, len(known.rollbacks))
            try:
                message[1] = str(self.publisher.go_back(known.current, self.rl.versions[known.current]))
            except ValueError as error:  # all processes have to end
                message = [None, str(error)]
        broadcast_object_list(message)
        if message[0] is None:
            raise ValueError(f"rollback: {message[1]}")
        version, lineage, rollbacks = message[0]
        logger.warning("going back from version %d to version %d", self.rl.version, version)
        self.update, self._decisions, self._snapshot, self._skipped_in_a_row = None, [], None, 0
        return_to_policy(self._module.policy, Path(message[1]))
        self._forget_direction()
        self.rl.lineage, self.rl.rollbacks, self.rl.published = list(lineage), rollbacks, True
        self.publisher.left = self.rl.left
        if self._policy_version() != self.rl.versions[version]:
            raise ValueError(f"rollback: {message[1]} gives other weights than version {version} had")

    def _policy_version(self) -> str:
        return weights_digest(merged_policy(self._module.policy))

    def _forget_direction(self) -> None:
        """After the policy's weights were replaced: moments of a direction that was given up."""
        if self.is_deepspeed_enabled:  # type: ignore[attr-defined]
            self.deepspeed.optimizer.refresh_fp32_params()  # its own copies of the weights
        for parameter in self._module.policy.parameters():
            self.optimizer.state.pop(parameter, None)
