"""Warm up the value model of reinforcement learning on demonstrations (paper, appendix A).

    syvla-value-warmup --policy_path outputs/my_task --robot_datasets path/to/dataset \
        --output_dir outputs/my_value

On several GPUs it begins with `accelerate launch training/value_warmup.py`.

"Since the IL dataset is fully offline, we directly compute standard state values via Monte Carlo returns": every frame is
an observation at which a decision could have been made, and its target is the discounted outcome of its episode. Reports
the explained variance on episodes that are held out whole.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and not __package__:  # started by its path
    from checkout import require_package

    require_package(__file__)

import numpy as np
import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from syvla.command_line import error_text
from syvla.durable_files import write_json
from syvla.training.hub.value_card import write_value_card
from syvla.training.processes.process_group import leave_process_group
from syvla.training.retrieval.demonstrations import (
    STATISTICS_TOLERANCE,
    episode_rewards,
    open_expert_datasets,
    split_episodes,
)
from syvla.training.rl.advantages import default_discount, explained_variance, monte_carlo_returns
from syvla.training.rl.value_fit import write_fit
from syvla.training.rl.value_inputs import value_inputs
from syvla.training.run.arguments import ROBOT_KEYS, dataset_spec
from syvla.training.run.batches import row_name
from syvla.training.run.checkpoints import RESUME_HELP, AtomicCheckpointMixin
from syvla.training.run.finite_steps import NONFINITE_HELP, FiniteStepsMixin
from syvla.training.run.recipe import parse_recipe
from syvla.training.run.requirements import require_trackers
from syvla.training.run.run_settings import OVERWRITE_HELP, settings_of
from syvla.training.run.schedule import warn_of_endless_warmup

logger = logging.getLogger("syvla.training.value_warmup")

INSTRUCTION_BYTES = 128
"""What a fresh value model reads of an instruction. Ours: longer ones are rare, and it costs as much as a few image tokens."""


@dataclass
class ValueArguments:
    """What is warmed up, and on what."""

    policy_path: str = field(
        default="", metadata={"help": "Checkpoint of the policy, folder or Hub id: its processor, robots and views."}
    )
    value_model_path: str | None = field(
        default=None, metadata={"help": "Value model to go on with; none: a fresh one."}
    )
    value_overrides: str | None = field(
        default=None, metadata={"help": "JSON with fields of SyVLAValueConfig for a fresh value model."}
    )
    vision_from_policy: bool = field(
        default=True,
        metadata={"help": "Start a fresh value model's image encoder from the policy's (config and weights)."},
    )
    robot_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": f"LeRobot datasets: paths or Hub ids, or JSON objects with {', '.join(ROBOT_KEYS)}."},
    )
    outcome_key: str = field(
        default="auto",
        metadata={
            "help": "Feature whose value at an episode's last frame says whether it succeeded; auto: next.success where "
            "there is one; none: all episodes succeeded."
        },
    )
    gamma: float | None = field(
        default=None,
        metadata={"help": "Discount per control step, which syvla-ppo takes over; none: 0.99 per decision_steps."},
    )
    decision_steps: int | None = field(
        default=None,
        metadata={"help": "Control steps over which the default gamma is 0.99; none: the policy's whole chunk."},
    )
    heldout_share: float = field(default=0.1, metadata={"help": "Share of the episodes that is held out."})
    statistics_tolerance: float = field(
        default=STATISTICS_TOLERANCE,
        metadata={"help": "Largest accepted difference between the dataset's statistics and the checkpoint's."},
    )

    def __post_init__(self) -> None:
        self.robot_specs = [dataset_spec(entry, "robot_datasets", ROBOT_KEYS) for entry in self.robot_datasets]
        if self.gamma is not None and not 0 < self.gamma <= 1:
            raise ValueError(f"gamma: expected a discount in (0, 1], got {self.gamma}")
        if self.decision_steps is not None and (self.gamma is not None or self.decision_steps < 1):
            raise ValueError(
                "decision_steps: expected at least 1, and only without gamma, which would leave it no effect"
            )


@dataclass
class ValueTrainingArguments(TrainingArguments):
    """`TrainingArguments` for the value model. The paper gives none of these values.

    Defaults that differ from `TrainingArguments`: learning_rate, max_steps, warmup_steps, lr_scheduler_type,
    per_device_train_batch_size, label_names, remove_unused_columns, logging_steps, report_to.
    """

    if TYPE_CHECKING:
        output_dir: str = ""  # `TrainingArguments` chooses a folder where none is given

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (FPO++ and pi_RL use 1e-4)."})
    max_steps: int = field(default=2000, metadata={"help": "Optimization steps."})
    warmup_steps: float = field(default=100, metadata={"help": "Warm-up steps, or a share of all steps if below 1."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Batch per process."})
    label_names: list[str] | None = field(default_factory=lambda: ["returns"], metadata={"help": "Leave as it is."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: samples are dicts of raw data."}
    )
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": RESUME_HELP})
    overwrite_output_dir: bool = field(default=False, metadata={"help": OVERWRITE_HELP})
    max_nonfinite_steps: int = field(default=3, metadata={"help": NONFINITE_HELP})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (HfArgumentParser wants this order)
        default="none", metadata={"help": "Trackers, e.g. trackio or wandb."}
    )

    def __post_init__(self) -> None:
        require_trackers(self.report_to)
        super().__post_init__()


class ReturnDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Observations of chosen episodes of a [`RobotDataset`], each with its Monte-Carlo return.

    Args:
        dataset: The dataset.
        positions: Which of its episodes, by position in its selection.
        rewards: Outcome of every episode of its selection.
        gamma: Discount per control step.
    """

    def __init__(self, dataset: Any, positions: Sequence[int], rewards: np.ndarray, *, gamma: float) -> None:
        self.dataset = dataset
        starts, lengths = dataset.episode_starts, dataset.episode_lengths
        chosen = [(int(starts[p]), int(lengths[p]), float(rewards[p])) for p in positions]
        self.rows = np.concatenate([np.arange(start, start + length) for start, length, _ in chosen])
        self.returns = np.concatenate(
            [monte_carlo_returns(length, gamma, reward) for _, length, reward in chosen]
        ).astype(np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[int(self.rows[index])]
        return {**item, "dataset": Path(self.dataset.root).name, "returns": float(self.returns[index])}


class ValueTrainer(FiniteStepsMixin, AtomicCheckpointMixin, Trainer):
    """Trains [`SyVLAValueModel`]; every checkpoint says which processor it belongs to.

    Args:
        processor: The policy's [`SyVLAProcessor`].
        facts: What `value_fit.json` and the card say about the training.
        embodiments: Robots in the data.
        kwargs: As [`Trainer`].
    """

    stage = "value warm-up"
    args: ValueTrainingArguments

    def __init__(self, *, processor: Any, facts: dict[str, Any], embodiments: list[str], **kwargs: Any) -> None:
        self.processor, self.facts, self.embodiments = processor, facts, embodiments
        super().__init__(data_collator=self.collate, compute_metrics=_metrics, **kwargs)

    def collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """What the value model reads, and the targets."""
        batch: dict[str, Any] = value_inputs(self.processor, self.accelerator.unwrap_model(self.model).config, items)
        rows = [f"{item.get('dataset', item['embodiment'])}: {row_name(item)}" for item in items]
        return {**batch, "returns": torch.tensor([item["returns"] for item in items]), "rows": rows}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As [`Trainer.compute_loss`]; notes the rows of the batch."""
        inputs = dict(inputs)
        rows = inputs.pop("rows", None)
        if model.training and rows is not None:
            self.note_rows(rows)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """As [`Trainer.create_scheduler`]; says so where the run ends within its warm-up."""
        warn_of_endless_warmup(self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def run_settings(self) -> dict[str, dict[str, Any]]:
        data = ("discount", "episodes", "successes", "heldout_share", "datasets")
        return settings_of(self.args, {name: self.facts[name] for name in data if name in self.facts})

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle has no place in a checkpoint
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n", encoding="utf-8")
        facts = {**self.facts, "steps": self.state.global_step}
        write_fit(folder, self.processor, facts, self.embodiments)
        model = self.accelerator.unwrap_model(self.model)
        write_value_card(folder, model.config, training=facts)


def _metrics(prediction: Any) -> dict[str, float]:
    values, returns = prediction.predictions, prediction.label_ids
    return {
        "explained_variance": explained_variance(values, returns),
        "mean_value": float(np.mean(values)),
        "mean_return": float(np.mean(returns)),
    }


def warm_up(value_args: ValueArguments, args: ValueTrainingArguments) -> ValueTrainer:
    """Load, check, train, evaluate on held-out episodes, save. Returns the trainer.

    Raises:
        ValueError: On any problem with data, policy or arguments, before training starts.
    """
    from transformers import AutoProcessor, set_seed

    import syvla  # noqa: F401  registers the Auto classes

    if not value_args.policy_path or not value_args.robot_specs:
        raise ValueError("policy_path and robot_datasets: both are needed; pass the policy's checkpoint and its data")
    set_seed(args.seed)
    processor = AutoProcessor.from_pretrained(value_args.policy_path)
    datasets = open_expert_datasets(value_args.robot_specs, processor, tolerance=value_args.statistics_tolerance)
    gamma = value_args.gamma or default_discount(value_args.decision_steps or processor.chunk_size)
    outcome_key = None if value_args.outcome_key == "none" else value_args.outcome_key
    rewards = [episode_rewards(dataset, outcome_key) for dataset in datasets]
    parts: list[list[Any]] = [[], []]
    for dataset, reward in zip(datasets, rewards, strict=True):
        split = split_episodes(dataset.num_episodes, value_args.heldout_share, args.seed)
        for part, positions in zip(parts, split, strict=True):
            part.append(ReturnDataset(dataset, positions, reward, gamma=gamma))
    embodiments = sorted({dataset.embodiment for dataset in datasets})
    joined: list[torch.utils.data.ConcatDataset[Any]] = [torch.utils.data.ConcatDataset(part) for part in parts]
    train, heldout = joined
    facts = {
        "discount": gamma,
        "episodes": int(sum(map(len, rewards))),
        "successes": int(sum(map(np.sum, rewards))),
        "heldout_share": value_args.heldout_share,
        "datasets": [Path(spec["path"]).name for spec in value_args.robot_specs],
    }
    trainer = ValueTrainer(
        model=load_value_model(value_args, processor, embodiments),
        args=args,
        processor=processor,
        facts=facts,
        embodiments=embodiments,
        train_dataset=train,
        eval_dataset=heldout,
    )
    before = trainer.evaluate()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    after = trainer.evaluate()
    facts["explained_variance_before"] = before["eval_explained_variance"]
    facts["explained_variance"] = after["eval_explained_variance"]
    trainer.save_model(args.output_dir)
    if trainer.is_world_process_zero():
        report = {"checkpoint": str(args.output_dir), **facts, "heldout_loss": after["eval_loss"]}
        folder = Path(args.output_dir)
        write_json(folder / "value_warmup.json", report, allow_nan=True)
        write_json(folder / "log_history.json", trainer.state.log_history, allow_nan=True)
    return trainer


def load_value_model(value_args: ValueArguments, processor: Any, embodiments: Sequence[str]) -> Any:
    """The value model to go on with, or a fresh one for the policy's robots and views, in float32.

    Raises:
        ValueError: If a given value model does not know a robot, or overrides are wrong.
    """
    from transformers import AutoConfig, AutoModel

    from syvla.modeling_syvla import SyVLAValueConfig, SyVLAValueModel

    if value_args.value_model_path:
        model = AutoModel.from_pretrained(value_args.value_model_path, dtype=torch.float32)
        for name in embodiments:
            entry = processor.embodiments[name]
            model.add_embodiment(name, entry["state_dim"], entry["action_dim"])
        return model
    try:
        fields = json.loads(value_args.value_overrides or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"value_overrides: expected JSON, got {value_args.value_overrides!r} ({error})") from error
    known = SyVLAValueConfig().to_dict()
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(f"value_overrides: {unknown} are no fields of SyVLAValueConfig")
    policy = AutoConfig.from_pretrained(value_args.policy_path)
    own = {"embodiments": policy.embodiments, "views": list(processor.views), "instruction_bytes": INSTRUCTION_BYTES}
    fields = {**own, **fields}
    if value_args.vision_from_policy:
        fields |= {"vision_config": policy.expert_vision_config, "image_size": policy.expert_image_size}
    model = SyVLAValueModel(SyVLAValueConfig(**fields)).float()
    if value_args.vision_from_policy:
        model.vision_tower.load_state_dict(_policy_vision_weights(value_args.policy_path))
    logger.info("fresh value model of %d parameters", model.num_parameters())
    return model


def _policy_vision_weights(policy_path: str) -> dict[str, torch.Tensor]:
    """Weights of the policy's image encoder, read without the rest of the policy."""
    from huggingface_hub import snapshot_download

    from syvla.modeling_syvla.tensor_files import read_checkpoint

    folder = Path(policy_path)
    if not folder.is_dir():
        folder = Path(snapshot_download(policy_path, allow_patterns=["*.safetensors", "*.json"]))
    prefix = "expert.vision_tower."
    tensors = {
        name.removeprefix(prefix): source.read().float() if source.dtype.is_floating_point else source.read()
        for name, source in read_checkpoint(folder).items()
        if name.startswith(prefix)
    }
    if not tensors:
        raise ValueError(f"policy_path: {policy_path} holds no weights {prefix}*; is it a SyVLA policy?")
    return tensors


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-value-warmup`. Returns the exit status; bad input is printed as one error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        value_args, args = parse_recipe(
            (ValueArguments, ValueTrainingArguments), argv, __doc__, prog="syvla-value-warmup"
        )
        trainer = warm_up(value_args, args)
    except (ValueError, OSError) as error:
        print(error_text("syvla-value-warmup: error", error), file=sys.stderr)
        return 1
    if trainer.is_world_process_zero():
        facts = trainer.facts
        print(json.dumps({"checkpoint": str(args.output_dir), "explained_variance": facts["explained_variance"]}))
    leave_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
