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
from syvla.training.run.requirements import require_one_device, require_processor
from syvla.training.run.run_settings import settings_of

from .action_likelihood import require_scored_design
from .checkpoint import decoupling_of, load_policy_and_value, ppo_card_fields, save_policy_and_value
from .config import IMITATING, SyVLAPPOConfig, fixed_settings
from .expert_samples import ExpertSamples
from .losses import value_loss
from .objective import policy_objective
from .policy_and_value import PolicyAndValue
from .policy_handover import PolicyHandoverMixin
from .policy_publisher import PolicyPublisher
from .rollout_selection import RolloutSelection, Selection, family_problem, wait_for_rollouts, wanted_sampler
from .rollout_store import RolloutStore, aggregated
from .run_state import RLState, staleness
from .step_metrics import StepMetrics
from .update_data import DATA_FILE, UpdateData
from .update_preparation import UpdatePreparation
from .value_calibration import TOLD_METRICS, share_calibration
from .value_fit import run_discount
from .value_inputs import value_inputs
from .weight_snapshot import WeightSnapshot

logger = logging.getLogger(__name__)


class SyVLAPPOTrainer(PolicyHandoverMixin, AtomicCheckpointMixin, Trainer):
    """Trains a SyVLA policy and its value model on rollouts and expert samples.

    Args:
        args: [`SyVLAPPOConfig`].
        processing_class: The policy's [`SyVLAProcessor`].
        model: [`SyVLAModel`], or a `peft.PeftModel` of one.
        value_model: [`SyVLAValueModel`], warmed up.
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
        choose_padding_free(self._module.base_policy, args.padding_free, compiled=args.torch_compile)
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
            groups = [
                {"params": [p for p in module.policy.parameters() if p.requires_grad], "lr": self.args.learning_rate},
                {
                    "params": [p for p in module.value_model.parameters() if p.requires_grad],
                    "lr": self.args.value_learning_rate,
                },
            ]
            for group in groups:
                group["weight_decay"] = self.args.weight_decay
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
            parameters = [p for p in part.parameters() if p.grad is not None]
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
                yield self._batch(update, number)
        self.control.should_training_stop = True

    def _wait_for_rollouts(self) -> Selection:
        """Claimed rollouts of the next update, a rollback that comes first, or nothing in time."""
        look = None
        if self.ledger is not None:
            sampler, tasks = wanted_sampler(self.args, self._module.base_policy.config), self.instructions

            def problem(rollout: Rollout) -> str | None:
                return family_problem(rollout, self.processing_class, sampler, tasks)

            look = RolloutSelection(self.store, self.ledger, self.rl, self.args, problem).look
        return wait_for_rollouts(look, self.args)

    def _begin_update(self, ids: list[str]) -> None:
        """Prepare the next update."""
        self._snapshot = WeightSnapshot.take(self._module.policy)
        self.rl.settings = fixed_settings(self.args)  # between updates they may have changed
        rollouts = self.store.load(ids)
        calibration = self._calibrate_values(rollouts)
        self.experts.take_corrections(aggregated(self.store, self.rl.consumed, rollouts))
        update, self._decisions = self.preparation.build_update(self.rl.updates, rollouts)
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
        if self.args.objective != "ppo" or not self.args.value_fit_max_steps:
            return {}
        first = self.is_world_process_zero()
        metrics = self.preparation.calibrate(self.rl.updates, rollouts) if first else {}
        metrics = share_calibration(self._module.value_model, metrics)
        if self.is_deepspeed_enabled:
            self.deepspeed.optimizer.refresh_fp32_params()
        return metrics

    def _batch(self, update: UpdateData, number: int) -> dict[str, Any]:
        """The rollout and expert samples of one pass of this process."""
        args, rank = self.args, self.args.process_index
        rollouts, experts = update.rollout_plan[number, rank], update.expert_plan[number, rank]
        if args.objective in IMITATING:
            rollouts = rollouts[:0]
        items = [self._decisions[i].item(thoughts=args.use_thoughts) for i in rollouts]
        items += [self.preparation.expert_item(int(update.expert_rows[i])) for i in experts]
        is_expert = [False] * len(rollouts) + [True] * len(experts)
        policy = self.preparation.policy_batch(items, is_expert)
        seeds = np.concatenate((update.seeds[rollouts], update.expert_seeds[experts]))
        value: dict[str, torch.Tensor] = {}
        if args.objective not in IMITATING:
            value = value_inputs(self.processing_class, self._module.value_model.config, items[: len(rollouts)])

        def both(mine: np.ndarray, theirs: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.concatenate((mine[rollouts], theirs[experts])))

        return {
            "policy": policy,
            "points": self.preparation.points(policy, seeds.tolist()),
            "value": value,
            "old_scores": both(update.old_scores, update.expert_scores),
            "advantages": both(update.advantages, update.expert_advantages),
            "is_expert": torch.tensor(is_expert),
            "returns": torch.from_numpy(update.returns[rollouts]),
            "old_values": torch.from_numpy(update.old_values[rollouts]),
        }

    # ------------------------------------------------------------------ loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        args = self.args
        value_only = args.objective == "ppo" and self.state.global_step < args.num_value_only_steps
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

    # ------------------------------------------------------------------ end of an update

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
            rollouts = self.store.load(self.update.episode_ids)
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
