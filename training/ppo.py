"""Similar-Sample Guided RL: improve a policy with its own labeled rollouts (paper, section 3.3).

    syvla-ppo --model_path outputs/my_task --value_model_path outputs/my_value \
        --robot_datasets path/to/demonstrations --encoder clip:openai/clip-vit-base-patch16 --output_dir outputs/my_rl

On several GPUs it begins with `accelerate launch training/ppo.py`. Publishes its policy in `output_dir/policies`, waits
for labeled rollouts of it in `output_dir/rollouts` (recorded by `syvla-serve --rl-run`), takes an update, publishes the
next policy, and so on. Started again it goes on with its newest checkpoint.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and not __package__:  # started by its path
    from checkout import require_package

    require_package(__file__)

from syvla.command_line import error_text
from syvla.durable_files import write_json
from syvla.training.processes.process_group import leave_process_group
from syvla.training.retrieval.demonstrations import STATISTICS_TOLERANCE
from syvla.training.rl.config import SyVLAPPOConfig
from syvla.training.rl.objective_settings import IMITATING, learns_values
from syvla.training.run.arguments import ROBOT_KEYS, ModelArguments, dataset_spec
from syvla.training.run.recipe import parse_recipe
from syvla.training.run.requirements import require_autocast

if TYPE_CHECKING:
    from syvla.training.rl.policy_publisher import PolicyPublisher

logger = logging.getLogger("syvla.training.ppo")


@dataclass
class RLDataArguments:
    """What it learns from."""

    value_model_path: str = field(
        default="",
        metadata={
            "help": "Value model of syvla-value-warmup. Imitation, dagger and group advantages need none; a given one stays as "
            "it is."
        },
    )
    robot_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": f"Demonstrations: paths or Hub ids, or JSON objects with {', '.join(ROBOT_KEYS)}."},
    )
    outcome_key: str = field(
        default="auto", metadata={"help": "As in syvla-value-warmup; failed demonstrations are no expert samples."}
    )
    decision_steps: int | None = field(
        default=None,
        metadata={
            "help": "Control steps per decision on demonstrations, for expert_advantages=gae; none: the whole chunk."
        },
    )
    statistics_tolerance: float = field(
        default=STATISTICS_TOLERANCE,
        metadata={"help": "Largest accepted difference between the dataset's statistics and the checkpoint's."},
    )
    rollouts_path: str | None = field(
        default=None, metadata={"help": "Recording of the policy server; none: output_dir/rollouts."}
    )
    rollout_cameras: str | None = field(
        default=None, metadata={"help": "JSON, view to camera feature of the rollouts; none: by their names."}
    )
    policies_path: str | None = field(
        default=None, metadata={"help": "Where policies are published; none: output_dir/policies."}
    )
    keep_policies: int = field(default=3, metadata={"help": "Published versions that are kept."})
    encoder: str | None = field(
        default=None, metadata={"help": "open_clip:NAME:WEIGHTS, clip:FOLDER_OR_ID or policy:FOLDER_OR_ID."}
    )
    encoder_device: str = field(default="cpu", metadata={"help": "Device of the encoder."})
    encoder_workers: int = field(default=1, metadata={"help": "Processes that encode the demonstrations once."})
    retrieval_path: str | None = field(
        default=None, metadata={"help": "Vectors of syvla-encode; none: output_dir/retrieval, made where missing."}
    )
    view_weights: str | None = field(default=None, metadata={"help": "JSON, weight of each view; none: the paper's."})
    approximate_index: str | None = field(
        default=None,
        metadata={
            "help": "FAISS factory string, such as HNSW32 or IVF1024,Flat: search similar samples approximately, with the "
            "recall in retrieval/recall; none: exactly."
        },
    )

    def __post_init__(self) -> None:
        self.robot_specs = [dataset_spec(entry, "robot_datasets", ROBOT_KEYS) for entry in self.robot_datasets]
        self.camera_map = _json(self.rollout_cameras, "rollout_cameras")
        self.weights = _json(self.view_weights, "view_weights")


def train(
    model_args: ModelArguments,
    data_args: RLDataArguments,
    args: SyVLAPPOConfig,
    publisher: PolicyPublisher | None = None,
) -> Any:
    """Load, check, train, save. Returns the trainer. One trainer at a time works on an `output_dir`.

    Args:
        publisher: Where policies go instead of `policies_path`; what it does before it returns happens before the next
            look for rollouts.

    Raises:
        ValueError: On any problem with policy, value model, data or rollouts; with what to do.
    """
    from syvla.training.rl.run_lock import only_trainer

    with only_trainer(Path(args.output_dir)) if args.process_index == 0 else nullcontext():
        return _train(model_args, data_args, args, publisher)


def _train(
    model_args: ModelArguments, data_args: RLDataArguments, args: SyVLAPPOConfig, publisher: PolicyPublisher | None
) -> Any:
    from transformers import set_seed

    from syvla.training.hub.model_card import RECIPE_FIELDS
    from syvla.training.hub.run_description import describe_robot_dataset, hub_id
    from syvla.training.imitation.command import choose_trained_weights, load_checkpoint
    from syvla.training.rl.policy_publisher import FolderPublisher
    from syvla.training.rl.rollout_store import LeRobotRolloutStore
    from syvla.training.rl.trainer import SyVLAPPOTrainer
    from syvla.training.run.run_page_callback import RunPageCallback

    labels, valued = args.objective not in IMITATING, learns_values(args)
    if not (model_args.model_path and data_args.robot_specs) or (valued and not data_args.value_model_path):
        raise ValueError(
            "model_path, value_model_path and robot_datasets: all are needed; pass the policy, its warmed-up value model "
            "(syvla-value-warmup; imitation, dagger and rollout_advantages=group need none) and the demonstrations it was "
            "fine-tuned on"
        )
    set_seed(args.seed)
    model, processor = load_checkpoint(model_args)
    require_autocast(model, args)
    experts = load_experts(data_args, args, processor)
    embodiments = sorted({dataset.embodiment for dataset in experts.datasets})
    value_model, fit = None, None
    if data_args.value_model_path:
        value_model, fit = load_value_model(data_args, args, processor, embodiments)
    output = Path(args.output_dir)
    trainer = SyVLAPPOTrainer(
        args=args,
        processing_class=processor,
        model=choose_trained_weights(model_args, model, embodiments),
        value_model=value_model,
        rollout_store=LeRobotRolloutStore(
            data_args.rollouts_path or output / "rollouts", data_args.camera_map, labels=labels
        ),
        experts=experts,
        publisher=publisher or FolderPublisher(data_args.policies_path or output / "policies", data_args.keep_policies),
        expert_decision_steps=data_args.decision_steps,
        value_fit=fit,
        card={
            "base_model": hub_id(model_args.model_path),
            "datasets": [
                describe_robot_dataset(spec, dataset)
                for spec, dataset in zip(data_args.robot_specs, experts.datasets, strict=True)
            ],
            "freeze": model_args.freeze,
        },
    )
    page = RunPageCallback(
        lambda: {"Configuration": {text: getattr(args, name, None) for name, text in RECIPE_FIELDS.items()}},
        trainer.card["datasets"],
    )
    trainer.add_callback(page)
    with page.ending_said(trainer):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    if trainer.is_world_process_zero():
        for name, value in (("rl_history", trainer.rl.history), ("log_history", trainer.state.log_history)):
            write_json(output / f"{name}.json", value, allow_nan=True)
    return trainer


def load_experts(data_args: RLDataArguments, args: SyVLAPPOConfig, processor: Any) -> Any:
    """Demonstrations, with vectors to search where the run needs them; process 0 makes missing ones."""
    from accelerate import PartialState

    from syvla.training.retrieval.demonstrations import open_expert_datasets
    from syvla.training.retrieval.embedding_store import VIEW_WEIGHTS
    from syvla.training.retrieval.encode_dataset import encode_datasets
    from syvla.training.rl.expert_samples import ExpertSamples

    datasets = open_expert_datasets(data_args.robot_specs, processor, tolerance=data_args.statistics_tolerance)
    outcome_key = None if data_args.outcome_key == "none" else data_args.outcome_key
    experts = ExpertSamples(datasets, heldout_share=args.heldout_share, outcome_key=outcome_key, seed=args.seed)
    if args.expert_mode != "similar":
        return experts
    if data_args.encoder is None:
        raise ValueError(
            "encoder: expert_mode=similar needs one, such as clip:openai/clip-vit-base-patch16 or policy:MODEL_PATH; or set "
            "expert_mode to random or none"
        )
    folder = data_args.retrieval_path or str(Path(args.output_dir) / "retrieval")
    weights = data_args.weights or VIEW_WEIGHTS
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            encode_datasets(
                datasets,
                data_args.encoder,
                folder,
                views=processor.views,
                view_weights=weights,
                workers=data_args.encoder_workers,
                devices=(data_args.encoder_device,),
                progress=not args.disable_tqdm,
            )
        experts.open_index(
            folder,
            data_args.encoder,
            data_args.encoder_device,
            weights,
            data_args.approximate_index,
            k=args.retrieval_top_k,
            same_task=args.same_task,
        )
    return experts


def load_value_model(
    data_args: RLDataArguments, args: SyVLAPPOConfig, processor: Any, embodiments: list[str]
) -> tuple[Any, dict[str, Any]]:
    """The warmed-up value model in float32 and what it was fitted to.

    Raises:
        ValueError: If it does not belong to the policy.
    """
    import torch
    from transformers import AutoModel

    from syvla.training.rl.value_fit import read_fit, run_discount, value_model_problems

    folder = data_args.value_model_path
    fit = read_fit(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    if problems := value_model_problems(folder, model.config, processor, embodiments):
        raise ValueError(f"value_model_path: {folder} does not fit the policy:\n- " + "\n- ".join(problems))
    args.gamma = run_discount(args.gamma, fit, processor.chunk_size)
    return model, fit


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-ppo`. Returns the exit status; bad input is printed as one error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        model_args, data_args, args = parse_recipe(
            (ModelArguments, RLDataArguments, SyVLAPPOConfig), argv, __doc__, prog="syvla-ppo"
        )
        trainer = train(model_args, data_args, args)
    except (ValueError, OSError, ImportError) as error:
        print(error_text("syvla-ppo: error", error), file=sys.stderr)
        return 1
    if trainer.is_world_process_zero():
        facts = {"updates": trainer.rl.updates, "version": trainer.rl.version, "rollouts": len(trainer.rl.consumed)}
        print(json.dumps({"checkpoint": str(args.output_dir), **facts}))
    leave_process_group()
    return 0


def _json(text: str | None, name: str) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: expected a JSON object, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a JSON object, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
