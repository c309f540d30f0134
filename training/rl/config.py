"""Options of Similar-Sample Guided RL (paper, section 3.3 and appendix A), in the conventions of TRL's trainers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from syvla.training.run.checkpoints import RESUME_HELP
from syvla.training.run.requirements import require_trackers
from syvla.training.run.run_settings import OVERWRITE_HELP

from .advantage_labels import ADVANTAGE_QUANTILE, INDICATOR_DROPOUT
from .advantages import ADVANTAGE_CLIP, EXPERT_ADVANTAGE
from .credit import FAILED_DECISIONS
from .flow_points import METHODS
from .objective_settings import IMITATING, OBJECTIVES, RATIOS, require_read_settings

EXPERT_MODES = ("similar", "random", "none")
EXPERT_ADVANTAGES = ("constant", "gae")
ROLLOUT_ADVANTAGES = ("gae", "group")
TRUST_REGIONS = ("ppo", "aspo")
UNBOUNDED_STEPS = 2**31 - 1


@dataclass
class SyVLAPPOConfig(TrainingArguments):
    r"""
    Options of [`SyVLAPPOTrainer`]: those of [`~transformers.TrainingArguments`] and the ones below.

    The paper gives: expert advantage 1.0, weights of the views, at most 10 updates of at most 20 rollouts, Intention
    Decoupling in this stage too, PPO as the base. All else is ours, after FPO, FPO++ and pi_RL.

    > Parameters that control the rollouts: `rollouts_per_update`, `max_rl_updates`, `max_staleness`, `poll_seconds`,
      `wait_timeout_s`, `bootstrap_timeouts`, `takeover_failed_decisions`

    > Parameters that control expert samples: `expert_mode`, `expert_ratio`, `expert_advantage`, `expert_advantages`,
      `retrieval_top_k`, `same_task`, `correction_share`

    > Parameters that control the likelihood ratio: `ratio_method`, `num_flow_samples`, `average_flow_samples`,
      `ratio_temperature`, `flow_sde_noise_level`, `intention_decoupling`, `padding_free`,
      `use_thoughts`

    > Parameters that control the update: `objective`, `num_ppo_epochs`, `steps_per_update`, `rollout_advantages`, `gamma`,
      `lam`, `advantage_clip`, `cliprange`, `expert_cliprange`, `dual_clip`, `trust_region`, `clamp_logratio`,
      `clamp_old_cfm`, `target_kl`, `vf_coef`, `cliprange_value`, `value_learning_rate`, `value_fit_threshold`,
      `value_fit_max_steps`, `value_heldout_share`, `num_value_only_steps`

    > Parameters of one objective alone: `advantage_quantile`, `indicator_dropout`, `max_replayed_rollouts` of recap,
      `nft_beta` of nft

    > Parameters that guard it: `max_skipped_steps`, `guard_heldout_cfm`, `min_advantage_spread`, `heldout_share`,
      `guard_samples`

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]: `learning_rate`,
    > `lr_scheduler_type`, `per_device_train_batch_size`, `logging_steps`, `save_strategy`,
    > `save_total_limit`, `remove_unused_columns`, `report_to`, `resume_from_checkpoint`,
    > `ignore_data_skip`.
    """

    if TYPE_CHECKING:
        output_dir: str = ""  # `TrainingArguments` chooses a folder where none is given

    learning_rate: float = field(default=5e-6, metadata={"help": "Learning rate of the policy (pi_RL uses 5e-6)."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule of both learning rates."})
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "Samples per process and pass, rollout and expert samples together."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    save_strategy: str = field(
        default="no", metadata={"help": "Checkpoints within an update; after every update there is one in any case."}
    )
    max_steps: int = field(
        default=-1, metadata={"help": "Optimization steps of the whole run; -1: max_rl_updates decides."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Newest checkpoints that are kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off."})
    resume_from_checkpoint: str | None = field(default="auto", metadata={"help": RESUME_HELP})
    overwrite_output_dir: bool = field(default=False, metadata={"help": OVERWRITE_HELP})
    ignore_data_skip: bool = field(default=True, metadata={"help": "Must stay on: a resumed update knows its place."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (HfArgumentParser wants this order)
        default="none", metadata={"help": "Trackers, e.g. trackio or wandb."}
    )

    # rollouts
    rollouts_per_update: int = field(default=20, metadata={"help": "Labeled rollouts that an update takes."})
    max_rl_updates: int = field(default=10, metadata={"help": "Updates of the run (the paper's RL episodes)."})
    max_staleness: int = field(
        default=0, metadata={"help": "Rollouts of policies that are older by more than this many versions are dropped."}
    )
    poll_seconds: float = field(default=2.0, metadata={"help": "Seconds between looks for new rollouts."})
    wait_timeout_s: float | None = field(
        default=None, metadata={"help": "End the run when an update waits longer than this for rollouts; none: never."}
    )
    bootstrap_timeouts: bool = field(
        default=True,
        metadata={
            "help": "Value the last state of a rollout that a time limit cut off and that is labeled 0, instead of taking it "
            "for a failure. A person's F on the page /rl means failure, whatever the limit."
        },
    )

    takeover_failed_decisions: int = field(
        default=FAILED_DECISIONS,
        metadata={
            "help": "Decisions of the policy before a person took over that count as failed; those before them are credited by "
            "the value of what they led to."
        },
    )

    # expert samples
    expert_mode: str = field(
        default="similar",
        metadata={"help": "Which expert samples join the rollouts' batch.", "choices": list(EXPERT_MODES)},
    )
    expert_ratio: float = field(default=0.5, metadata={"help": "Share of expert samples in a batch."})
    expert_advantage: float = field(
        default=EXPERT_ADVANTAGE, metadata={"help": "Constant advantage of expert samples (paper: 1)."}
    )
    expert_advantages: str = field(
        default="constant",
        metadata={
            "help": "constant: expert_advantage; gae: along the demonstration by the value model, an ablation.",
            "choices": list(EXPERT_ADVANTAGES),
        },
    )
    retrieval_top_k: int = field(default=8, metadata={"help": "Most similar expert samples that are drawn from."})
    same_task: bool = field(default=True, metadata={"help": "Only expert samples with the rollout's instruction."})

    correction_share: float = field(
        default=0.5,
        metadata={
            "help": "Share of the expert samples that are a person's corrections in rollouts, once there are any; 0: none. "
            "Half, as in HIL-SERL."
        },
    )

    # likelihood ratio
    ratio_method: str = field(
        default="fpo",
        metadata={
            "help": "How chunks are scored, see action_likelihood. flow_sde: syvla-serve --rl-run samples the rollouts of its "
            "policies stochastically and records the step, which is scored.",
            "choices": list(METHODS),
        },
    )
    num_flow_samples: int = field(
        default=8,
        metadata={
            "help": "Points of the flow at which a chunk is scored. With flow_sde a rollout has its one recorded step, "
            "whatever this number; experts have so many pseudo-steps."
        },
    )
    average_flow_samples: bool = field(
        default=False, metadata={"help": "One ratio per chunk (FPO) instead of one per point (FPO++)."}
    )
    ratio_temperature: float = field(
        default=1.0, metadata={"help": "Factor of the log ratio; choose it so that policy/clipfrac_avg is 0.05 to 0.3."}
    )
    flow_sde_noise_level: float = field(default=0.5, metadata={"help": "Noise of the stochastic sampler, flow_sde."})
    intention_decoupling: bool | None = field(
        default=True,
        metadata={
            "help": "Intention Decoupling in the update, as in the paper: query states of small gradient are masked while "
            "samples are scored, whatever imitation did; none: as the checkpoint says."
        },
    )
    padding_free: bool | None = field(
        default=None,
        metadata={"help": "Run the VLM on the real tokens of a batch alone; none: where the model allows it."},
    )
    use_thoughts: bool = field(default=True, metadata={"help": "Whether recorded thoughts stand before the queries."})

    # update
    objective: str = field(
        default="ppo",
        metadata={
            "help": "ppo. nft: flow matching towards good and, bounded, away from bad actions, without a ratio. recap: flow "
            "matching on all rollouts of the run, good and bad, each decision's advantage a word in its prompt (pi*0.6). "
            "imitation: a control that trains on the same expert samples by flow matching, without RL. dagger: imitation of "
            "demonstrations and of all corrections of people in the run's rollouts so far.",
            "choices": list(OBJECTIVES),
        },
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over an update's decisions."})
    steps_per_update: int | None = field(
        default=None, metadata={"help": "Optimization steps per update instead of whole passes."}
    )
    local_rollout_forward_batch_size: int = field(
        default=16, metadata={"help": "Samples per pass without gradients: values, old scores, image features."}
    )
    rollout_advantages: str = field(
        default="gae",
        metadata={
            "help": "gae: along each rollout by the value model. group: of whole rollouts, how many standard deviations one's "
            "reward lies above the mean of its instruction's rollouts in the update (GRPO); no value model is needed.",
            "choices": list(ROLLOUT_ADVANTAGES),
        },
    )
    gamma: float | None = field(
        default=None,
        metadata={
            "help": "Discount per control step; none: the value model's, from its warm-up. Another one is refused."
        },
    )
    lam: float = field(default=0.95, metadata={"help": "Lambda of GAE."})
    advantage_clip: float = field(
        default=ADVANTAGE_CLIP, metadata={"help": "Bound of rollouts' advantages; they are never whitened."}
    )
    cliprange: float = field(default=0.05, metadata={"help": "PPO's clip range for rollouts."})
    expert_cliprange: float | None = field(default=None, metadata={"help": "Clip range for experts; none: cliprange."})
    dual_clip: float = field(
        default=3.0, metadata={"help": "Bound of the loss at negative advantages, in advantages; 0: no bound."}
    )
    trust_region: str = field(
        default="ppo",
        metadata={"help": "ppo, or aspo: a quadratic penalty at negative advantages.", "choices": list(TRUST_REGIONS)},
    )
    clamp_logratio: float = field(default=3.0, metadata={"help": "Bound of the log ratio's magnitude in the loss."})
    clamp_old_cfm: float = field(
        default=0.0, metadata={"help": "Bound of the old policy's flow-matching loss, summed over steps; 0: no bound."}
    )
    target_kl: float = field(
        default=0.05, metadata={"help": "End an update when the approximate KL exceeds this; 0: never."}
    )
    vf_coef: float = field(default=0.5, metadata={"help": "Weight of the value loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of values around the old ones."})
    value_learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of the value model."})
    value_fit_threshold: float = field(
        default=0.3,
        metadata={
            "help": "Before an update's advantages are computed, value-only steps on its rollouts go on until this share of "
            "the variance of held-out rollouts' returns is explained; at most value_fit_max_steps."
        },
    )
    value_fit_max_steps: int = field(default=200, metadata={"help": "Most of these steps per update; 0: none."})
    value_heldout_share: float = field(
        default=0.25, metadata={"help": "Share of an update's rollouts held out of them."}
    )
    num_value_only_steps: int = field(
        default=0,
        metadata={
            "help": "First steps of the run, of the updates' own, that train the value model alone, whatever it explains."
        },
    )

    # recap
    advantage_quantile: float = field(
        default=ADVANTAGE_QUANTILE,
        metadata={"help": "Decisions are positive if their advantage is above this quantile of those of their task."},
    )
    indicator_dropout: float = field(
        default=INDICATOR_DROPOUT,
        metadata={"help": "Share of samples whose prompts say nothing, which makes guidance possible at inference."},
    )
    max_replayed_rollouts: int | None = field(
        default=None,
        metadata={
            "help": "Earlier rollouts of the run, the newest ones, that join an update's own; none: all of them."
        },
    )

    # nft
    nft_beta: float = field(
        default=1.0,
        metadata={
            "help": "How far the mirrored velocities of good and bad actions lie from the old one; 1 as in RLinf."
        },
    )

    # guards
    max_skipped_steps: int = field(
        default=5, metadata={"help": "Steps in a row without finite gradients after which an update is given up."}
    )
    guard_heldout_cfm: float = field(
        default=1.2,
        metadata={"help": "Publish a policy only if its flow-matching loss on held-out expert samples is at most this "
                  "many times the first policy's."},
    )  # fmt: skip
    min_advantage_spread: float = field(
        default=0.01,
        metadata={"help": "Publish a policy only if its update's advantages differ by this much, and successes are above "
                  "failures and above 0 by it: otherwise they carry no information. 0: publish in any case."},
    )  # fmt: skip
    heldout_share: float = field(default=0.05, metadata={"help": "Share of expert episodes kept for that guard."})
    guard_samples: int = field(default=64, metadata={"help": "Held-out samples that the guard looks at."})

    def __post_init__(self) -> None:
        require_trackers(self.report_to)
        choices = (
            ("expert_mode", EXPERT_MODES),
            ("expert_advantages", EXPERT_ADVANTAGES),
            ("rollout_advantages", ROLLOUT_ADVANTAGES),
            ("objective", OBJECTIVES),
            ("trust_region", TRUST_REGIONS),
            ("ratio_method", METHODS),
        )
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        counts = ("rollouts_per_update", "max_rl_updates", "num_flow_samples", "num_ppo_epochs", "retrieval_top_k")
        for name in (*counts, "takeover_failed_decisions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        positive = ("cliprange", "clamp_logratio", "advantage_clip", "ratio_temperature", "guard_heldout_cfm")
        for name in (*positive, "nft_beta", "flow_sde_noise_level"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.value_fit_max_steps < 0 or not 0 < self.value_heldout_share < 1 or self.value_fit_threshold >= 1:
            raise ValueError(
                "value_fit_max_steps, value_heldout_share, value_fit_threshold: expected at least 0, a share in (0, 1) and a "
                f"number below 1, got {self.value_fit_max_steps}, {self.value_heldout_share}, {self.value_fit_threshold}"
            )
        if self.gamma is not None and not 0 < self.gamma <= 1:
            raise ValueError(f"gamma: expected a discount in (0, 1], got {self.gamma}")
        if self.fp16:
            raise ValueError("fp16: likelihood ratios need float32 losses without loss scaling; use bf16 or neither")
        if self.max_grad_norm <= 0:
            raise ValueError("max_grad_norm: expected a positive number; without clipping the update is not stable")
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError(f"dual_clip: expected more than 1, or 0 for none, got {self.dual_clip}")
        if not 0 <= self.correction_share <= 1:
            raise ValueError(f"correction_share: expected a share from 0 to 1, got {self.correction_share}")
        if self.objective in IMITATING and self.expert_mode == "none":
            raise ValueError(f"objective: {self.objective} needs expert samples; set expert_mode to similar or random")
        if self.objective not in RATIOS and self.ratio_method != "fpo":
            raise ValueError(
                f"ratio_method: {self.ratio_method} is no flow-matching loss, by which objective={self.objective} trains; "
                "leave it at fpo"
            )
        if not 0 < self.advantage_quantile < 1 or not 0 <= self.indicator_dropout < 1:
            raise ValueError(
                "advantage_quantile, indicator_dropout: expected numbers in (0, 1) and in [0, 1), got "
                f"{self.advantage_quantile} and {self.indicator_dropout}"
            )
        if self.max_replayed_rollouts is not None and self.max_replayed_rollouts < 0:
            raise ValueError(f"max_replayed_rollouts: expected at least 0, got {self.max_replayed_rollouts}")
        if self.objective == "dagger" and not self.correction_share:
            raise ValueError(
                "correction_share: objective=dagger needs corrections; set it above 0, or choose imitation"
            )
        require_read_settings(self)
        if self.expert_mode != "none" and not 0 < self.rollouts_per_pass < self.per_device_train_batch_size:
            raise ValueError(
                f"expert_ratio: {self.expert_ratio} of {self.per_device_train_batch_size} samples leaves no rollout or no "
                "expert sample in a batch; choose a ratio in (0, 1) and a larger per_device_train_batch_size"
            )
        if self.max_steps <= 0:
            if self.steps_per_update is not None:
                self.max_steps = self.max_rl_updates * self.steps_per_update
            elif self.lr_scheduler_type not in ("constant", "constant_with_warmup"):
                raise ValueError(
                    f"lr_scheduler_type: {self.lr_scheduler_type} has to know its end; set steps_per_update"
                )
            else:
                self.max_steps = UNBOUNDED_STEPS
        super().__post_init__()

    @property
    def accepted_staleness(self) -> int:
        """By how many versions a rollout's policy may be behind: without a ratio to the policy that acted, by any."""
        return self.max_rl_updates if self.objective == "recap" else self.max_staleness

    @property
    def rollouts_per_pass(self) -> int:
        """Rollout samples in a batch of one process."""
        share = 0.0 if self.expert_mode == "none" else self.expert_ratio
        return self.per_device_train_batch_size - round(share * self.per_device_train_batch_size)

    @property
    def experts_per_pass(self) -> int:
        """Expert samples in a batch of one process."""
        return self.per_device_train_batch_size - self.rollouts_per_pass


FIXED_WITHIN_UPDATE = (
    "seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "objective",
    "expert_mode",
    "expert_advantages",
    "rollout_advantages",
    "expert_ratio",
    "correction_share",
    "ratio_method",
    "num_flow_samples",
    "flow_sde_noise_level",
    "intention_decoupling",
    "use_thoughts",
)


def fixed_settings(args: SyVLAPPOConfig) -> dict[str, Any]:
    """Settings that may not change while an update goes on."""
    return {**{name: getattr(args, name) for name in FIXED_WITHIN_UPDATE}, "world_size": args.world_size}
