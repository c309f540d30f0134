"""SyVLAPPOTrainer: Similar-Sample Guided RL on `transformers.Trainer` (paper, section 3.3 and appendix A).

TRL has dropped its PPO trainer; this one keeps TRL's names and conventions and stands on its own. An update takes sealed,
labeled rollouts of the present policy, joins them with expert samples, takes clipped steps and, if the guard agrees,
publishes the next policy. `Trainer.train()` is used as it is: the updates are its data loader.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl
from transformers.trainer import TRAINING_ARGS_NAME

from syvla.serving.recording.decision import Decision, Rollout
from syvla.serving.rl.ledger import SET_ASIDE, Ledger
from syvla.training.hub.model_card import refuse_card_options, write_model_card
from syvla.training.run.argument_fields import (
    NO_EVALUATION_SET,
    REFUSED_BY_PPO_TRAINER,
    require_read_fields,
    require_read_options,
)
from syvla.training.run.batches import choose_padding_free
from syvla.training.run.checkpoints import AtomicCheckpointMixin
from syvla.training.run.compiled_layers import compile_instead_of_whole
from syvla.training.run.requirements import require_one_device, require_processor
from syvla.training.run.run_settings import settings_of

from .action_likelihood import require_scored_design
from .checkpoint import load_policy_and_value, ppo_card_fields, prompts_as_trained, save_policy_and_value
from .config import SyVLAPPOConfig, fixed_settings
from .expert_samples import ExpertSamples
from .losses import value_loss
from .objective import policy_objective
from .objective_settings import IMITATING, learns_values
from .policy_and_value import PolicyAndValue
from .policy_handover import PolicyHandoverMixin
from .policy_publisher import PolicyPublisher
from .rollout_selection import RolloutSelection, Selection, family_problem, wait_for_rollouts, wanted_sampler
from .rollout_store import RolloutStore, aggregated, replayed
from .run_state import RLState, staleness
from .step_metrics import StepMetrics
from .update_batches import update_batch
from .update_data import DATA_FILE, UpdateData
from .update_ending import UpdateEndingMixin
from .update_preparation import UpdatePreparation
from .value_calibration import TOLD_METRICS, share_calibration
from .value_fit import run_discount
from .weight_snapshot import WeightSnapshot

logger = logging.getLogger(__name__)


class SyVLAPPOTrainer(PolicyHandoverMixin, UpdateEndingMixin, AtomicCheckpointMixin, Trainer):
    """Trains a SyVLA policy and its value model on rollouts and expert samples.

    Args:
        args: [`SyVLAPPOConfig`].
        processing_class: The policy's [`SyVLAProcessor`].
        model: [`SyVLAModel`], or a `peft.PeftModel` of one.
        value_model: [`SyVLAValueModel`], warmed up; may be None where it is not read: imitation, dagger and group advantages.
        rollout_store: Where rollouts come from.
        experts: [`ExpertSamples`]; with an open index for `expert_mode="similar"`.
        publisher: Where policies go.
        ledger: Of the run, which its server shares; None: the one in `args.output_dir`.
        expert_decision_steps: Control steps between decisions on expert episodes; None: the policy's chunk.
        value_fit: Contents of the value model's `value_fit.json`, saved beside it again.
        card: Further fields of the model card, see `write_model_card`.
        kwargs: As [`Trainer`].
    """

    _tag_names = ["syvla", "ppo", "flow-matching"]
    _name = "SyVLA-PPO"
    _paper = {
        "title": "Scaling by Diversified Experience for Vision-Language-Action Models",
        "id": "2606.09009",
    }
    stage = "reinforcement learning"
    args: SyVLAPPOConfig
    model: torch.nn.Module
    processing_class: Any
    optimizer: torch.optim.Optimizer
    deepspeed: Any

    def __init__(
        self,
        args: SyVLAPPOConfig,
        processing_class: Any,
        model: Any,
        value_model: Any,
        rollout_store: RolloutStore,
        experts: ExpertSamples,
        publisher: PolicyPublisher,
        *,
        ledger: Ledger | None = None,
        expert_decision_steps: int | None = None,
        value_fit: dict[str, Any] | None = None,
        card: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        require_read_fields(args, REFUSED_BY_PPO_TRAINER, type(self).__name__)
        require_read_options(kwargs, type(self).__name__, unread=NO_EVALUATION_SET)
        self.store, self.experts, self.publisher = rollout_store, experts, publisher
        self.value_fit, self.card = value_fit, card or {}
        self.rl = RLState()
        self.update: UpdateData | None = None
        self._decisions: list[Decision] = []
        self._snapshot: WeightSnapshot | None = None
        self._skipped_in_a_row = 0
        self._steps = StepMetrics()
        self._finished_metrics: dict[str, float] = {}
        self._began = time.time()
        if value_model is None and learns_values(args):
            raise ValueError(
                f"value_model: objective={args.objective} learns from values; pass a warmed-up value model"
            )
        require_processor(processing_class)
        require_one_device(args)
        super().__init__(
            model=PolicyAndValue(model, value_model),
            args=args,
            processing_class=processing_class,
            data_collator=lambda batch: batch,  # type: ignore[arg-type,return-value]  # unread: batches come made
            **kwargs,
        )
        if problems := processing_class.disagreements(self._module.base_policy.config):
            raise ValueError("processor and model do not fit together:\n- " + "\n- ".join(problems))
        require_scored_design(self._module.base_policy.config)
        self._began_conditioned = bool(processing_class.advantage_conditioned)
        if args.objective == "recap":
            processing_class.advantage_conditioned = self._module.base_policy.config.advantage_conditioned = True
        choose_padding_free(self._module.base_policy, args.padding_free, compiled=args.torch_compile)
        compile_instead_of_whole(self.accelerator, self._module.base_policy, args)
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
            raise ValueError("syvla-ppo needs whole weights on every process; use DDP or ZeRO-2, not FSDP or ZeRO-3")
        self.preparation = UpdatePreparation(
            args,
            self._module,
            processing_class,
            experts,
            gather=gather_object,
            precision=self.compute_loss_context_manager,
            expert_decision_steps=expert_decision_steps or processing_class.chunk_size,
            gamma=run_discount(args.gamma, value_fit, processing_class.chunk_size),
        )
        self.add_callback(_UpdateCallback(self))
        self.ledger = None
        if self.is_world_process_zero():
            self.ledger = ledger or Ledger(Path(args.output_dir))

    # ------------------------------------------------------------------ optimizer

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Policy and value model have learning rates of their own."""
        if getattr(self, "optimizer", None) is None:
            module = self._module
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, None)
            rates = ((module.policy, self.args.learning_rate), (module.value_model, self.args.value_learning_rate))
            groups = [
                {
                    "params": [p for p in part.parameters() if p.requires_grad],
                    "lr": rate,
                    "weight_decay": self.args.weight_decay,
                }
                for part, rate in rates
                if part is not None
            ]
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> torch.Tensor | float:
        """Clip the two models apart, and drop a step whose gradients are not finite: the optimizer then does nothing."""
        if self.is_deepspeed_enabled:
            norm: torch.Tensor | float = super()._clip_grad_norm(model)
            return norm
        module = self._module
        norms = {}
        for name, part in (("policy", module.policy), ("value", module.value_model)):
            parameters = [] if part is None else [p for p in part.parameters() if p.grad is not None]
            norms[name] = (
                float(torch.nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)) if parameters else 0.0
            )
        total = math.hypot(*norms.values())
        if math.isfinite(total):
            self._skipped_in_a_row = 0
        else:
            self._skipped_in_a_row += 1
            logger.warning("step %d: gradients are not finite (%s); skipped", self.state.global_step, norms)
            model.zero_grad(set_to_none=True)
        self._steps.add({f"grad_norm/{name}": value for name, value in norms.items() if math.isfinite(value)})
        self._steps.add({"policy/skipped_steps": float(not math.isfinite(total))})
        return torch.tensor(total)

    # ------------------------------------------------------------------ data

    def get_train_dataloader(self) -> Any:
        return _Passes(self)

    def passes(self) -> Iterator[dict[str, Any]]:
        """Batches of update after update, until the last one or until no rollouts come."""
        while self.rl.updates < self.args.max_rl_updates:
            if self.update is None:
                found = self._wait_for_rollouts()
                if found.rolled_back:
                    self._go_back()
                    continue
                if len(found.chosen) < self.args.rollouts_per_update:
                    logger.warning("no rollouts came within wait_timeout_s=%s; the run ends", self.args.wait_timeout_s)
                    break
                self._begin_update(found.chosen)
            update = self.update
            assert update is not None
            accumulation = self.args.gradient_accumulation_steps
            for number in range(update.step * accumulation, len(update.rollout_plan)):
                if update.ended:
                    break
                yield update_batch(self.preparation, update, self._decisions, number)
        self.control.should_training_stop = True

    def _wait_for_rollouts(self) -> Selection:
        """Claimed rollouts of the next update, a rollback that comes first, or nothing in time."""
        look = None
        if self.ledger is not None:
            sampler, tasks = wanted_sampler(self.args, self._module.base_policy.config), self.instructions
            labels = self.args.objective not in IMITATING

            def problem(rollout: Rollout) -> str | None:
                return family_problem(rollout, self.processing_class, sampler, tasks, labels=labels)

            look = RolloutSelection(self.store, self.ledger, self.rl, self.args, problem).look
        return wait_for_rollouts(look, self.args)

    def _begin_update(self, ids: list[str]) -> None:
        """Prepare the next update."""
        self._snapshot = WeightSnapshot.take(self._module.policy)
        self.rl.settings = fixed_settings(self.args)  # between updates they may have changed
        rollouts, again = self.store.load(ids), []
        if self.args.objective == "recap":
            again = replayed(self.store, self.rl.consumed, self.args.max_replayed_rollouts)
        calibration = self._calibrate_values([*rollouts, *again])
        self.experts.take_corrections(aggregated(self.store, self.rl.consumed, rollouts))
        update, self._decisions = self.preparation.build_update(self.rl.updates, rollouts, again)
        self.update = update
        update.metrics |= calibration
        stale = [staleness(self.rl.line, rollout.facts.policy_versions) for rollout in rollouts]
        known = [behind for behind in stale if behind is not None] or [0]  # a person may have accepted a foreign one
        update.metrics |= {
            "buffer/staleness_mean": float(np.mean(known)),
            "buffer/staleness_max": float(np.max(known)),
        }
        if self.ledger is not None:
            update.metrics["buffer/set_aside_total"] = float(len(self.ledger.read().names(SET_ASIDE)))
        self._began = time.time()
        logger.info(
            "update %d: %d rollouts, %d decisions, success %.2f; %s",
            update.number,
            len(ids),
            len(self._decisions),
            update.metrics["objective/success_rate"],
            ", ".join(f"{name} {update.metrics[name]:.3g}" for name in TOLD_METRICS if name in update.metrics),
        )
        if update.no_information:
            logger.error("update %d will not be published: %s", update.number, update.no_information)

    def _calibrate_values(self, rollouts: list[Rollout]) -> dict[str, float]:
        """Value-only steps on the first process, whose weights all others take over; metrics."""
        if not learns_values(self.args) or not self.args.value_fit_max_steps:
            return {}
        first = self.is_world_process_zero()
        metrics = self.preparation.calibrate(self.rl.updates, rollouts) if first else {}
        metrics = share_calibration(self._module.value_model, metrics)
        if self.is_deepspeed_enabled:
            self.deepspeed.optimizer.refresh_fp32_params()
        return metrics

    # ------------------------------------------------------------------ loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        args = self.args
        value_only = self.state.global_step < args.num_value_only_steps
        outputs = model(
            policy=None if value_only else inputs["policy"],
            points=None if value_only else inputs["points"],
            value=inputs["value"] or None,
            decoupling=args.intention_decoupling,
        )
        loss = outputs["zero"].to(inputs["advantages"].device)
        metrics: dict[str, float] = {}
        if outputs["scores"] is not None:
            part, metrics = policy_objective(outputs, inputs, args)
            loss = loss + part
            if "policy/approxkl_avg" in metrics:
                self._steps.add_kl(metrics["policy/approxkl_avg"])
        if outputs["values"] is not None:
            losses, clipped = value_loss(
                outputs["values"], inputs["old_values"], inputs["returns"], args.cliprange_value
            )
            loss = loss + args.vf_coef * losses.mean()
            metrics |= {
                "loss/value_avg": float(losses.detach().mean()),
                "val/clipfrac_avg": float(clipped.float().mean()),
            }
        self._steps.add(metrics)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the steps' metrics since the last log, over all processes."""
        if "loss" in logs:
            logs |= {**self._steps.reduce(gather_object), **self._finished_metrics}
            self._finished_metrics = {}
            logs["episode"] = float(len(self.rl.consumed))
            logs["lr"] = logs.get("learning_rate", self.args.learning_rate)
        super().log(logs, start_time)

    # ------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Publishes the policy of a finished update once the checkpoint that knows of it is in its place."""
        super()._save_checkpoint(model, trial)
        if self.update is None:
            self._publish()

    def run_settings(self) -> dict[str, dict[str, Any]]:
        """The demonstrations may not change; settings may between updates, see `RLState.require_settings`."""
        datasets = [[Path(dataset.root).name, len(dataset)] for dataset in self.experts.datasets]
        return settings_of(self.args, {"demonstrations": datasets}, fixed=())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with prompts_as_trained(self._module.policy, self.processing_class, self.conditioned):
            save_policy_and_value(folder, self._module, self.processing_class, self.value_fit)
        self.rl.save(folder)
        (folder / DATA_FILE).unlink(missing_ok=True)
        if self.update is not None and self._snapshot is not None:
            self.update.save(folder)
            self._snapshot.save(folder)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n", encoding="utf-8")
        self._write_card(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_policy_and_value(resume_from_checkpoint, self._module)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """With them, under every engine, what the run remembers and the update that it stands in."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self.rl = RLState.load(checkpoint)
        self.rl.require_retrieval(self.experts.fingerprints)
        if (Path(checkpoint) / DATA_FILE).is_file():
            self.rl.require_settings(fixed_settings(self.args))
            self.update = UpdateData.load(checkpoint)
            self._snapshot = WeightSnapshot.load(checkpoint)
            rollouts = self.store.load([*self.update.episode_ids, *self.update.replayed_ids])
            self._decisions = [d for rollout in rollouts for d in rollout.decisions if d.valid.any()]
            self.experts.take_corrections(self.store.load(self.update.corrected_ids))
            logger.info("resuming update %d at step %d", self.update.number, self.update.step)

    # ------------------------------------------------------------------ card

    def create_model_card(self, *args: Any, **options: Any) -> None:
        refuse_card_options(self.model, *args, **options)
        if self.is_world_process_zero():
            self._write_card(Path(self.args.output_dir))

    def _write_card(self, folder: Path) -> None:
        facts = {**ppo_card_fields(self.args, self.rl, self._module.policy, self.state.global_step), **self.card}
        facts |= {
            "tags": self._tag_names,
            "reinforcement_learning": {"trainer": self._name, **facts["reinforcement_learning"]},
        }
        write_model_card(folder, self._module.base_policy.config, self.processing_class, facts)


class _Passes:
    """The trainer's data loader: batches that already hold tensors, without a length."""

    def __init__(self, trainer: SyVLAPPOTrainer) -> None:
        self._trainer = trainer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._trainer.passes()


class _UpdateCallback(TrainerCallback):
    def __init__(self, trainer: SyVLAPPOTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.start()

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.after_step(control)
