"""How an update ends: after its last step, early, or by a guard that gives its policy up."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import gather_object

from .checkpoint import decoupling_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import TrainerControl

    from syvla.serving.recording.decision import Decision

    from .config import SyVLAPPOConfig
    from .expert_samples import ExpertSamples
    from .policy_and_value import PolicyAndValue
    from .run_state import RLState
    from .step_metrics import StepMetrics
    from .update_data import UpdateData
    from .update_preparation import UpdatePreparation
    from .weight_snapshot import WeightSnapshot

logger = logging.getLogger(__name__)


class UpdateEndingMixin:
    """The part of [`SyVLAPPOTrainer`] that ends updates.

    Attributes:
        update: The update that is under way.
        rl: What the run remembers.
    """

    args: SyVLAPPOConfig
    experts: ExpertSamples
    preparation: UpdatePreparation
    processing_class: Any
    rl: RLState
    update: UpdateData | None
    _decisions: list[Decision]
    _snapshot: WeightSnapshot | None
    _skipped_in_a_row: int
    _steps: StepMetrics
    _began: float
    _finished_metrics: dict[str, float]
    _warn: Callable[[str], None]
    _rollback_waits: Callable[[], bool]
    _go_back: Callable[[], None]
    _policy_version: Callable[[], str]
    _forget_direction: Callable[[], None]

    @property
    def _module(self) -> PolicyAndValue:
        """Policy and value model without wrappers, see [`PolicyHandoverMixin`]."""
        raise NotImplementedError

    def after_step(self, control: TrainerControl) -> None:
        """Counts the step. Ends the update after its last step, at a large KL, or after too many non-finite gradients."""
        update = self.update
        if update is None:
            return
        if self._rollback_waits():
            update.ended = control.should_save = control.should_log = True
            self._go_back()
            return
        update.step += 1
        update.ended |= bool(update.no_information)
        kl = self._steps.last_kl(gather_object)
        if self.args.target_kl and kl is not None and kl > self.args.target_kl:
            logger.info("update %d: ends after %d steps, approximate KL %.3g", update.number, update.step, kl)
            update.metrics["policy/stopped_by_kl"] = 1.0
            update.ended = True
        if self._skipped_in_a_row >= self.args.max_skipped_steps:
            logger.error("update %d: given up after %d skipped steps", update.number, self._skipped_in_a_row)
            update.ended = True
        if update.ended or update.step * self.args.gradient_accumulation_steps >= len(update.rollout_plan):
            self._finish_update()
            control.should_save = control.should_log = True
            if self.rl.updates >= self.args.max_rl_updates:
                control.should_training_stop = True

    def _finish_update(self) -> None:
        """Guard, then the next version or the old weights again; the checkpoint and the publication follow."""
        update = self.update
        assert update is not None
        heldout = self.heldout_cfm()
        baseline = self.rl.baseline_cfm
        assert baseline is not None
        refused = None
        if self._skipped_in_a_row >= self.args.max_skipped_steps:
            refused = "gradients were not finite"
        elif not math.isfinite(heldout) or heldout > self.args.guard_heldout_cfm * baseline:
            refused = f"held-out loss {heldout:.4g} exceeds {self.args.guard_heldout_cfm} times {baseline:.4g}"
        elif update.no_information:
            refused = f"its advantages carry no information: {update.no_information}"
        module = self._module
        if refused is None:
            self.rl.add_version(self._policy_version())
        else:
            text = f"update {update.number} is not published: {refused}; the policy of version {self.rl.version} is restored"
            self._warn(text)
            assert self._snapshot is not None
            self._snapshot.restore(module.policy)
            self._forget_direction()
        self._skipped_in_a_row = 0
        self.rl.updates += 1
        self.rl.consumed += update.episode_ids
        seconds = max(time.time() - self._began, 1e-9)
        metrics = {
            **update.metrics,
            "policy/cfm_heldout": heldout,
            "policy/published": float(refused is None),
            "eps": len(update.episode_ids) / seconds,
        }
        facts = {"update": update.number, "version": self.rl.version, "steps": update.step, "refused": refused}
        facts["intention_decoupling"] = decoupling_of(self.args, module.policy)
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self.rl.history.append({**facts, **finite})
        self.update, self._decisions, self._snapshot = None, [], None
        self._finished_metrics = metrics  # join the log of the update's last step

    def heldout_cfm(self) -> float:
        """Flow-matching loss per entry on the held-out expert samples, always at the same points."""
        rows = self.experts.heldout_rows(self.args.guard_samples, self.args.seed)
        items = [self.preparation.expert_item(int(row)) for row in rows]
        steps = np.array([(~np.asarray(item["action_is_pad"])).sum() for item in items])
        if self._module.base_policy.config.chunk_end == "hold":  # the steps after the end count as well
            steps[:] = self.processing_class.chunk_size
        seeds = np.arange(len(rows))
        scores = self.preparation.scores(lambda i: items[i], seeds, rollout=False, decoupling=False, method="fpo")
        return float((-scores / steps[:, None]).mean())
