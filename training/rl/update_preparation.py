"""From sealed rollouts to an update: values, advantages, similar experts, old scores. Nothing here has a gradient."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from syvla.modeling_syvla.expert_inputs import end_chunks
from syvla.serving.recording.decision import Decision, Rollout

from .advantage_labels import label_metrics, left_out, positive_decisions
from .advantages import (
    clip_advantages,
    decision_rewards,
    explained_variance,
    generalized_advantages,
    group_relative_advantages,
)
from .config import SyVLAPPOConfig
from .credit import (
    CreditedPart,
    counted_decisions,
    credited_outcomes,
    credited_parts,
    outcome_metrics,
    own_reward,
)
from .expert_samples import ExpertSamples
from .flow_points import chain_tensors, make_points
from .guidance import write_guidance
from .objective_settings import IMITATING, RATIOS, learns_values
from .policy_and_value import PolicyAndValue
from .update_data import UpdateData, join_corrections, plan_experts, plan_rollouts, sample_seeds
from .value_calibration import advantage_metrics, calibrate_values, information_problem, value_targets
from .value_inputs import value_inputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgedDecisions:
    """What is known of an update's D decisions.

    Attributes:
        advantages, returns, values: float32 (D,); advantages are clipped where a ratio is weighted by them.
        positive: bool (D,), whether an advantage is positive; False without labels.
        metrics: What is logged of it.
        no_information: Why the advantages say nothing; empty if they do.
    """

    advantages: np.ndarray
    returns: np.ndarray
    values: np.ndarray
    positive: np.ndarray
    metrics: dict[str, float]
    no_information: str = ""


Gather = Callable[[list[Any]], list[Any]]
"""Concatenates the lists of all processes, in their order."""


class UpdatePreparation:
    """Prepares updates of one run.

    Args:
        args: [`SyVLAPPOConfig`].
        model: [`PolicyAndValue`], without wrappers.
        processor: [`SyVLAProcessor`].
        experts: [`ExpertSamples`].
        gather: See `Gather`; the work is shared among processes.
        precision: Context manager of the forward passes, as in training.
        expert_decision_steps: Control steps between decisions on expert episodes, for GAE on them.
        gamma: Discount per control step.
    """

    def __init__(
        self,
        args: SyVLAPPOConfig,
        model: PolicyAndValue,
        processor: Any,
        experts: ExpertSamples,
        *,
        gather: Gather,
        precision: Callable[[], Any],
        expert_decision_steps: int,
        gamma: float,
    ) -> None:
        self.args, self.model, self.processor, self.experts = args, model, processor, experts
        self._gather, self._precision, self._expert_steps = gather, precision, expert_decision_steps
        self.gamma = gamma

    def build_update(
        self, number: int, rollouts: Sequence[Rollout], replayed: Sequence[Rollout] = ()
    ) -> tuple[UpdateData, list[Decision]]:
        """Computes everything about an update that stays fixed during its steps, and lists its decisions.

        Args:
            number: Of the update.
            rollouts: Its own.
            replayed: Earlier ones that it learns from as well.
        """
        args = self.args
        decisions = [decision for rollout in (*rollouts, *replayed) for decision in counted_decisions(rollout)]
        if not decisions:
            raise ValueError("rollouts: not one action of them was executed; look at what the robot's client reports")
        judged = self._judge(rollouts, replayed, len(decisions))
        metrics = {
            **judged.metrics,
            "objective/takeover_rate": float(np.mean([bool(rollout.corrections) for rollout in rollouts])),
            "corrections/frames": float(len(self.experts.corrections)),
        }
        if args.objective == "dagger" and not self.experts.corrections:
            logger.warning("update %d: no person has corrected the policy; it imitates demonstrations alone", number)
        numbers = np.arange(len(decisions))
        generator = np.random.default_rng(sample_seeds(args.seed, number, 2, np.zeros(1))[0])
        passes = self.passes(len(decisions))
        world = args.world_size
        rollout_plan = plan_rollouts(len(decisions), args.rollouts_per_pass, passes, world, generator)
        neighbors, similarities, retrieval = self._neighbors(decisions, generator)
        if args.process_index == 0:
            self._show(number, rollouts, judged, neighbors, similarities)
        rows, expert_plan = plan_experts(rollout_plan, neighbors, args.experts_per_pass, generator)
        rows, expert_plan = join_corrections(
            rows, expert_plan, self.experts.correction_rows, args.correction_share, generator
        )
        seeds, expert_seeds = sample_seeds(args.seed, number, 0, numbers), sample_seeds(args.seed, number, 1, rows)
        expert_advantages = self._expert_advantages(rows)
        before = self._before(decisions, seeds, rows, expert_seeds)
        metrics |= {**retrieval, "episode/decisions": float(len(decisions)), "episode/passes": float(passes)}
        if len(rows):
            metrics |= _spread("objective/advantage_expert", expert_advantages)
            metrics["retrieval/unique_frac"] = len(rows) / expert_plan.size
            metrics["corrections/share"] = float((rows >= len(self.experts)).astype(float)[expert_plan].mean())
        rate = args.indicator_dropout
        data = UpdateData(
            number=number,
            episode_ids=[rollout.facts.episode_id for rollout in rollouts],
            advantages=judged.advantages,
            returns=judged.returns,
            old_values=judged.values,
            seeds=seeds,
            expert_rows=rows,
            expert_seeds=expert_seeds,
            expert_advantages=expert_advantages,
            **before,
            rollout_plan=rollout_plan,
            expert_plan=expert_plan,
            metrics=metrics,
            no_information=judged.no_information,
            corrected_ids=self.experts.corrected_ids,
            replayed_ids=[rollout.facts.episode_id for rollout in replayed],
            positive=judged.positive,
            dropped_rollouts=left_out(args.seed, number, rollout_plan.shape, rate, experts=False),
            dropped_experts=left_out(args.seed, number, expert_plan.shape, rate, experts=True),
        )
        return data, decisions

    def passes(self, decisions: int) -> int:
        """Forward-backward passes per process: whole steps, and at least `num_ppo_epochs` times all decisions."""
        args = self.args
        accumulation = args.gradient_accumulation_steps
        if args.steps_per_update is not None:
            given: int = args.steps_per_update * accumulation
            return given
        per_step = args.rollouts_per_pass * args.world_size * accumulation
        needed: int = args.num_ppo_epochs * -(-decisions // per_step) * accumulation
        return needed

    def calibrate(self, number: int, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Value-only steps on an update's rollouts, on this process alone; see `calibrate_values`."""
        args, model = self.args, self.model.value_model

        def inputs(decisions: list[Decision]) -> dict[str, torch.Tensor]:
            batch = value_inputs(self.processor, model.config, [decision.item() for decision in decisions])
            return {key: value.to(model.device) for key, value in batch.items()}

        return calibrate_values(
            model,
            inputs,
            value_targets(
                rollouts,
                self.gamma,
                leave_out_timeouts=args.bootstrap_timeouts,
                failed_decisions=args.takeover_failed_decisions,
            ),
            threshold=args.value_fit_threshold,
            max_steps=args.value_fit_max_steps,
            heldout_share=args.value_heldout_share,
            batch_size=args.local_rollout_forward_batch_size,
            learning_rate=args.value_learning_rate,
            precision=self._precision,
            seed=int(sample_seeds(args.seed, number, 3, np.zeros(1))[0]),
        )

    # ------------------------------------------------------------------ forward passes

    def expert_item(self, row: int) -> dict[str, Any]:
        return self.experts.item(row, thoughts=self.args.use_thoughts)

    def policy_batch(self, items: Sequence[dict[str, Any]], is_expert: Sequence[bool]) -> dict[str, torch.Tensor]:
        """Collates items into a batch for the policy.

        After the end of an expert's episode stands what imitation puts there, `config.chunk_end`; not after a person's
        corrections that the policy went on from. Actions of a rollout's
        chunk that were never executed stay, since the policy attended to them when it sampled the others; `action_mask`
        excludes them.
        """
        batch = dict(self.processor.collate(items))
        batch.pop("labels", None)
        pairs = zip(items, is_expert, strict=True)
        expert = torch.tensor([mine and item.get("ends_episode", True) for item, mine in pairs])[:, None, None]
        ended, trained = end_chunks(self.model.base_policy.config.chunk_end, batch["actions"], batch["action_mask"])
        batch["actions"] = torch.where(expert, ended, batch["actions"])
        batch["action_mask"] = torch.where(expert, trained, batch["action_mask"])
        if self.args.ratio_method == "flow_sde":
            batch |= chain_tensors([item.get("chain") for item in items], batch["actions"])
        return batch

    def points(
        self, batch: dict[str, torch.Tensor], seeds: Sequence[int], method: str | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Fields of the [`ScoredPoints`] of a batch, by the run's method where `method` is None."""
        args, config = self.args, self.model.base_policy.config
        points = make_points(
            batch,
            seeds,
            config,
            method=method or args.ratio_method,
            num_samples=args.num_flow_samples,
            noise_level=args.flow_sde_noise_level,
        )
        return points.x, points.timestep, points.target, points.weight

    def scores(
        self,
        item: Callable[[int], dict[str, Any]],
        seeds: np.ndarray,
        *,
        rollout: bool,
        decoupling: bool | None = None,
        method: str | None = None,
    ) -> np.ndarray:
        """Scores of samples 0 .. len(seeds) - 1, float32 (n, S).

        `decoupling` and `method` are the run's settings where they are None.
        """
        found = self._asked(item, seeds, "scores", rollout=rollout, decoupling=decoupling, method=method)
        return found.reshape(len(seeds), self.args.num_flow_samples)

    def velocities(self, item: Callable[[int], dict[str, Any]], seeds: np.ndarray, *, rollout: bool) -> np.ndarray:
        """Velocities at the points of samples 0 .. len(seeds) - 1, float32 (n, S, T, D)."""
        config = self.model.base_policy.config
        found = self._asked(item, seeds, "velocity", rollout=rollout)
        return found.reshape(len(seeds), self.args.num_flow_samples, int(config.chunk_size), int(config.max_action_dim))

    def _asked(
        self,
        item: Callable[[int], dict[str, Any]],
        seeds: np.ndarray,
        what: str,
        *,
        rollout: bool,
        decoupling: bool | None = None,
        method: str | None = None,
    ) -> np.ndarray:
        """An output of the policy on samples 0 .. len(seeds) - 1, float32 (n, ...)."""
        chosen = self.args.intention_decoupling if decoupling is None else decoupling

        def run(numbers: list[int]) -> torch.Tensor:
            batch = self.policy_batch([item(i) for i in numbers], [not rollout] * len(numbers))
            points = self.points(batch, [int(seeds[i]) for i in numbers], method)
            device = self.model.base_policy.device
            moved = {key: value.to(device) for key, value in batch.items()}
            points = tuple(p.to(device) for p in points)
            answer: torch.Tensor = self.model(policy=moved, points=points, decoupling=chosen)[what]
            return answer

        return np.array(self._run(run, len(seeds), "Scoring"), np.float32)

    def values(self, item: Callable[[int], dict[str, Any]], count: int) -> np.ndarray:
        """Values of samples 0 .. count - 1, float32 (n,)."""

        def run(numbers: list[int]) -> torch.Tensor:
            batch = value_inputs(self.processor, self.model.value_model.config, [item(i) for i in numbers])
            device = self.model.value_model.device
            moved = {key: value.to(device) for key, value in batch.items()}
            values: torch.Tensor = self.model(value=moved)["values"]
            return values

        return np.array(self._run(run, count, "Valuing"), np.float32).reshape(-1)

    @torch.no_grad()
    def _run(self, run: Callable[[list[int]], torch.Tensor], count: int, what: str) -> list[Any]:
        """Results of all samples, of which each process computes its share."""
        args = self.args
        size, rank, own = args.local_rollout_forward_batch_size, args.process_index, list(self._share(count))
        results: list[Any] = []
        silent = args.disable_tqdm or len(own) < 20 * size or rank > 0
        for low in tqdm(range(0, len(own), size), desc=what, leave=False, disable=silent):
            with self._precision():
                results += list(run(own[low : low + size]).float().cpu().numpy())
        return self._gather(results)

    # ------------------------------------------------------------------ parts

    def _judge(self, rollouts: Sequence[Rollout], replayed: Sequence[Rollout], count: int) -> JudgedDecisions:
        """Advantages of the `count` decisions that count, and their labels, as far as the objective asks for them."""
        args = self.args
        if args.objective in IMITATING:
            nothing = np.zeros(count, np.float32)
            return JudgedDecisions(nothing, nothing, nothing, np.zeros(count, bool), outcome_metrics(rollouts))
        known = [*rollouts, *replayed]
        if args.rollout_advantages == "group":
            advantages, outcomes, metrics = self._group_advantages(known)
            returns = values = np.zeros(count, np.float32)
        else:
            advantages, returns, values, metrics = self._advantages(known)
            outcomes = np.array(
                [said for rollout in known for said in credited_outcomes(rollout, self._parts(rollout))]
            )
        metrics |= {**outcome_metrics(rollouts), **advantage_metrics(advantages, outcomes)}
        recap, spread = args.objective == "recap", args.min_advantage_spread
        problem = information_problem(advantages, outcomes, spread, relative=recap)
        positive = np.zeros(count, bool)
        if recap:
            tasks = [decision.instruction for rollout in known for decision in counted_decisions(rollout)]
            positive, thresholds = positive_decisions(advantages, tasks, args.advantage_quantile)
            metrics |= label_metrics(positive, outcomes, thresholds)
            metrics["recap/replayed_rollouts"] = float(len(replayed))
            if spread and not problem and not positive.any():
                problem = "within each task the advantages of all decisions are equal, so none is positive"
        return JudgedDecisions(advantages, returns, values, positive, metrics, problem)

    def _show(
        self,
        number: int,
        rollouts: Sequence[Rollout],
        judged: JudgedDecisions,
        neighbors: np.ndarray,
        similarities: np.ndarray | None,
    ) -> None:
        """Leaves for people what guides the update."""
        labels = judged.positive if self.args.objective == "recap" else None
        valued: dict[str, np.ndarray] = {} if self.args.objective in IMITATING else {"advantage": judged.advantages}
        if learns_values(self.args):
            valued["value"] = judged.values
        shown = (number, rollouts, valued, labels, neighbors, similarities, self.experts)
        write_guidance(Path(self.args.output_dir), *shown)

    def _before(
        self, decisions: Sequence[Decision], seeds: np.ndarray, rows: np.ndarray, expert_seeds: np.ndarray
    ) -> dict[str, Any]:
        """What the objective asks of the present policy about decisions and expert samples, by field of [`UpdateData`]."""
        args = self.args
        mine = (lambda i: decisions[i].item(thoughts=args.use_thoughts), seeds)
        theirs = (lambda i: self.expert_item(int(rows[i])), expert_seeds)
        if args.objective in RATIOS:
            return {
                "old_scores": self.scores(*mine, rollout=True),
                "expert_scores": self.scores(*theirs, rollout=False),
            }
        none = [np.zeros((len(own), args.num_flow_samples), np.float32) for own in (seeds, expert_seeds)]
        found = {"old_scores": none[0], "expert_scores": none[1]}
        if args.objective == "nft":
            found["old_velocities"] = self.velocities(*mine, rollout=True)
            found["expert_velocities"] = self.velocities(*theirs, rollout=False)
        return found

    def _advantages(self, rollouts: Sequence[Rollout]) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
        """Advantages, returns and values of the decisions that count, and metrics.

        Advantages are clipped, but not where they are only compared with a threshold.

        A rollout's last decisions do not count if none of their actions ran: the rollout ended at their observation, and the
        decision before them gets the reward. In the middle of a rollout such a decision gets no advantage, but its value
        enters the advantages of the decisions before it. Where a person took over: see `credit`.
        """
        args = self.args
        observed = [decision for rollout in rollouts for decision in (*rollout.decisions, rollout.final)]
        values = self.values(lambda i: observed[i].item(), len(observed))
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        start = 0
        for rollout in rollouts:
            own = values[start : start + len(rollout.decisions) + 1]
            start += len(own)
            ran = np.array([decision.valid.any() for decision in rollout.decisions])
            steps = np.array([decision.executed or 0 for decision in rollout.decisions])
            for part in self._parts(rollout):
                numbers = slice(part.first, part.last)
                rewards, discounts = np.zeros(part.last - part.first), self.gamma ** steps[numbers].astype(np.float64)
                if part.outcome is not None:
                    rewards, discounts = decision_rewards(steps[numbers], part.outcome, self.gamma)
                advantages, returns = generalized_advantages(
                    rewards,
                    own[numbers],
                    gamma=discounts,
                    lam=args.lam,
                    bootstrap_value=None if part.following is None else float(own[part.following]),
                )
                counted = ran[numbers]
                found.append((advantages[counted], returns[counted], own[numbers][counted]))
        raw, returns, kept = (np.concatenate(part) for part in zip(*found, strict=True))
        clipped, share = (raw, 0.0) if args.objective == "recap" else clip_advantages(raw, args.advantage_clip)
        metrics = {
            "objective/frac_adv_clipped": share,
            "val/explained_variance": explained_variance(kept, returns),
            **_spread("objective/advantage_rollout", clipped),
        }
        return clipped.astype(np.float32), returns.astype(np.float32), kept.astype(np.float32), metrics

    def _group_advantages(self, rollouts: Sequence[Rollout]) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Clipped advantages and outcomes of the decisions that count, each that of its whole rollout, and metrics.

        A group is the rollouts of one instruction. A rollout in which a person took over has the outcome 0.
        """
        outcomes = np.array([own_reward(rollout) for rollout in rollouts])
        raw = group_relative_advantages(outcomes, [rollout.decisions[0].instruction for rollout in rollouts])
        counts = [len(counted_decisions(rollout)) for rollout in rollouts]
        clipped, share = clip_advantages(np.repeat(raw, counts), self.args.advantage_clip)
        metrics = {"objective/frac_adv_clipped": share, **_spread("objective/advantage_rollout", clipped)}
        return clipped.astype(np.float32), np.repeat(outcomes, counts), metrics

    def _parts(self, rollout: Rollout) -> list[CreditedPart]:
        return credited_parts(
            rollout,
            failed_decisions=self.args.takeover_failed_decisions,
            bootstrap_timeouts=self.args.bootstrap_timeouts,
        )

    def _neighbors(
        self, decisions: Sequence[Decision], generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None, dict[str, float]]:
        """Rows of candidates of each decision, (D, k), their similarities where they are retrieved, and metrics."""
        args = self.args
        if args.expert_mode == "none":
            return np.zeros((len(decisions), 1), np.int64), None, {}
        tasks = [decision.instruction for decision in decisions] if args.same_task else None
        if args.expert_mode == "random":
            return self.experts.random(len(decisions), args.retrieval_top_k, tasks, generator).rows, None, {}
        if tasks is not None:
            self.experts.require_tasks(tasks)  # all processes have to stop, not the one whose share it is
        size, own = args.local_rollout_forward_batch_size, self._share(len(decisions))
        rows, best = [], []
        for low in range(own.start, own.stop, size):
            part = slice(low, min(low + size, own.stop))
            found = self.experts.similar(
                [dict(decision.images) for decision in decisions[part]],
                args.retrieval_top_k,
                None if tasks is None else tasks[part],
            )
            rows += found.rows.tolist()
            best += found.similarities.tolist()
        # Shared, so that all processes plan with the same rows, whatever rounding their encoders do.
        similarity = np.array(self._gather(best), np.float32)
        known = similarity[np.isfinite(similarity)]
        metrics = {"retrieval/sim_mean": float(known.mean()), "retrieval/sim_min": float(known.min())}
        if self.experts.approximate is not None and math.isfinite(self.experts.approximate.recall):
            metrics["retrieval/recall"] = self.experts.approximate.recall
        return np.array(self._gather(rows), np.int64), similarity, metrics

    def _share(self, count: int) -> range:
        """This process's part of `count` samples."""
        world, rank = self.args.world_size, self.args.process_index
        return range(rank * count // world, (rank + 1) * count // world)

    def _expert_advantages(self, rows: np.ndarray) -> np.ndarray:
        """The constant, or GAE along the demonstration by the value model, neither clipped nor whitened."""
        args = self.args
        if args.expert_advantages == "constant" or not len(rows):
            return np.full(len(rows), args.expert_advantage, np.float32)
        chains = [self.experts.following(int(row), self._expert_steps) for row in rows]
        distinct = sorted({row for chain in chains for row in chain})
        values = dict(zip(distinct, self.values(lambda i: self.expert_item(distinct[i]), len(distinct)), strict=True))
        advantages = []
        for chain in chains:
            steps = np.diff([*chain, self.experts.episode_end(chain[0])])
            rewards, discounts = decision_rewards(steps, 1.0, self.gamma)
            own = np.array([values[row] for row in chain])
            advantages.append(generalized_advantages(rewards, own, gamma=discounts, lam=args.lam)[0][0])
        return np.array(advantages, np.float32)


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    return {f"{name}_{what}": float(getattr(values, what)()) for what in ("mean", "min", "max")}
