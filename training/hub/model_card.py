"""The README.md of a checkpoint, filled from its config, processor and training run, and what is written beside it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from syvla.command_line import error_text

from .evaluation_results import eval_results, results_table

TEMPLATE = Path(__file__).parents[2] / "model_cards" / "syvla_policy.md"
TAGS = ["robotics", "vision-language-action", "vla", "syvla", "flow-matching"]
RUN_FILE = "training_run.json"
"""What a run told the card about itself."""

STATISTICS_FILE = "dataset_statistics.json"
"""Normalization statistics for people and other programs; the processor's own copy is the one in use."""

# Width and depth of the language model of Qwen2.5-VL-3B, whose weights carry a research license.
_QWEN_3B = {"hidden_size": 2048, "num_hidden_layers": 36}
RECIPE_FIELDS = {
    "max_steps": "planned steps",
    "num_train_epochs": "planned epochs",
    "per_device_train_batch_size": "batch per process",
    "gradient_accumulation_steps": "gradient accumulation",
    "learning_rate": "peak learning rate",
    "final_learning_rate": "final learning rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warm-up",
    "adam_beta1": "Adam beta 1",
    "adam_beta2": "Adam beta 2",
    "adam_epsilon": "Adam epsilon",
    "weight_decay": "weight decay",
    "max_grad_norm": "gradient clipping",
    "ema_decay": "decay of the weight average",
    "bf16": "bfloat16",
    "seed": "seed",
}
"""Training arguments that the card states, with their names there."""

_UNSET = (None, False, 0, -1)


def refuse_card_options(model: Any, **options: Any) -> None:
    """Raise ValueError for an option of [`Trainer.create_model_card`] that our card, written from the run, would not show.

    `model_name` and the model's own `tags` are let through: [`Trainer.push_to_hub`] passes them always, and our card has the
    repository's name and these tags anyway.
    """
    own_tags = getattr(model, "model_tags", None) or ()
    for name, value in options.items():
        shown = name == "model_name" or (name == "tags" and set(value or ()) <= set(own_tags))
        if value is not None and not shown:
            raise ValueError(
                f"{name}: this trainer writes the card from the run's own facts and does not take it; edit README.md in the "
                "output folder, and upload the folder with syvla-push"
            )


def write_model_card(folder: str | Path, config: Any, processor: Any, fields: dict[str, Any]) -> Path:
    """Write `README.md`, the run's facts and readable statistics into a checkpoint folder.

    Args:
        folder: Checkpoint folder.
        config: [`SyVLAConfig`].
        processor: [`SyVLAProcessor`].
        fields: JSON values of the run, all optional: `step`, `nonfinite_steps` (skipped ones), `world_size`, `final` (last
            logged losses), `held_out` (last losses on held-out data), `held_out_data` (what was held out: pairs of a dataset's
            name and its episodes, or number of rows), `arguments` (the `RECIPE_FIELDS`), `freeze`,
            `multimodal_share`, `datasets` (see `syvla.training.hub.run_description`), `base_model` (Hub id), `adapter`
            (`{"kind", "scope", "rank", "alpha"}`), `evaluations` (summaries of `syvla-eval`), `augmentation` (its fields),
            `model_name`, `model_id`, `instruction`, `reinforcement_learning` (facts by name), `tags` (further ones).

    Returns:
        Path of the card.
    """
    folder = Path(folder)
    name = fields.get("model_name") or fields.get("model_id") or folder.resolve().name
    title = name.split("/")[-1]
    evaluations = fields.get("evaluations") or []
    arguments = fields.get("arguments") or {}
    card = ModelCard.from_template(
        _card_data(config, fields, title),
        template_path=str(TEMPLATE),
        title=title,
        model_id=fields.get("model_id") or name,
        qwen=_is_qwen_3b(config),
        config=config,
        embodiments=processor.embodiments,
        cameras=_cameras(fields),
        first_embodiment=next(iter(processor.embodiments), "my_robot"),
        instruction=fields.get("instruction") or "lift the red cube",
        adapter=fields.get("adapter"),
        datasets=fields.get("datasets") or [],
        multimodal_share=fields.get("multimodal_share"),
        step=fields.get("step"),
        nonfinite_steps=fields.get("nonfinite_steps"),
        world_size=fields.get("world_size"),
        freeze=fields.get("freeze"),
        augmentation=fields.get("augmentation") or {},
        final=fields.get("final") or {},
        held_out=fields.get("held_out") or {},
        reinforcement_learning=fields.get("reinforcement_learning") or {},
        recipe={text: arguments[key] for key, text in RECIPE_FIELDS.items() if arguments.get(key) not in _UNSET},
        results=results_table(evaluations),
    )
    path = folder / "README.md"
    card.save(path)
    (folder / RUN_FILE).write_text(json.dumps(fields, indent=1, default=str) + "\n", encoding="utf-8")
    statistics = {name: _readable_statistics(entry) for name, entry in processor.embodiments.items()}
    (folder / STATISTICS_FILE).write_text(json.dumps(statistics, indent=1) + "\n", encoding="utf-8")
    return path


def add_results(card_path: str | Path, summary_path: str | Path) -> None:
    """Add what `syvla-eval` measured to a card; the rest of the card, edited by hand perhaps, stays.

    Args:
        card_path: The card, or the folder that holds it.
        summary_path: `summary.json` of an evaluation of that very checkpoint.

    Raises:
        ValueError: If the summary is not one of a SyVLA policy, or has no episodes.
    """
    card_path = Path(card_path)
    card_path = card_path / "README.md" if card_path.is_dir() else card_path
    if not card_path.is_file():
        raise ValueError(f"{card_path}: no such model card")
    card = ModelCard.load(card_path)
    summary = load_summary(summary_path)
    new = eval_results(summary)
    replaced = {(r.dataset_type, r.dataset_config, r.metric_type) for r in new}
    old = [r for r in card.data.eval_results or [] if (r.dataset_type, r.dataset_config, r.metric_type) not in replaced]
    card.data.eval_results = old + new
    card.data.model_name = card.data.model_name or card_path.resolve().parent.name
    before, heading, after = card.text.partition("## Results\n")
    if not heading:
        raise ValueError(f"{card_path}: has no section '## Results' to write into")
    following = after.find("\n## ")
    rest = after[following:] if following >= 0 else ""
    card.text = before + heading + "\n" + results_table(None, card.data.eval_results) + "\n" + rest
    card.save(card_path)


def load_summary(path: str | Path) -> dict[str, Any]:
    """A `summary.json` of `syvla-eval`.

    Raises:
        ValueError: If it cannot be read or is something else.
    """
    try:
        summary: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        eval_results(summary)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return summary


def _card_data(config: Any, fields: dict[str, Any], title: str) -> ModelCardData:
    qwen = _is_qwen_3b(config)
    adapter = fields.get("adapter")
    evaluations = [result for summary in fields.get("evaluations") or [] for result in eval_results(summary)]
    base = fields.get("base_model")
    relation: dict[str, Any] = {"base_model_relation": "adapter" if adapter else "finetune"} if base else {}
    return ModelCardData(
        license="other" if qwen else "apache-2.0",
        license_name="qwen-research" if qwen else None,
        license_link="https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/LICENSE" if qwen else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="robotics",
        tags=list(dict.fromkeys([*TAGS, adapter["kind"] if adapter else "custom_code", *(fields.get("tags") or [])])),
        base_model=base,
        datasets=list(dict.fromkeys(d["id"] for d in fields.get("datasets") or [] if d.get("id"))) or None,
        model_name=title if evaluations else None,
        eval_results=evaluations or None,
        **relation,
    )


def _is_qwen_3b(config: Any) -> bool:
    text = config.get_text_config()
    return all(getattr(text, key, None) == value for key, value in _QWEN_3B.items())


def _cameras(fields: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Distinct camera maps (view -> camera) of each embodiment."""
    cameras: dict[str, list[dict[str, str]]] = {}
    for dataset in fields.get("datasets") or []:
        known = cameras.setdefault(dataset.get("embodiment") or "", [])
        if dataset.get("cameras") and dataset["cameras"] not in known:
            known.append(dataset["cameras"])
    return cameras


def _readable_statistics(entry: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"control_hz": entry.get("control_hz")}
    for kind in ("state", "action"):
        result[kind] = {
            "names": entry.get(f"{kind}_names"),
            "units": entry.get(f"{kind}_units"),
            "normalization": entry["normalization"][kind],
            **entry["statistics"][kind],
        }
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m syvla.training.hub.model_card`. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m syvla.training.hub.model_card",
        description="Add the measured results of syvla-eval to a model card.",
    )
    parser.add_argument("checkpoint", help="checkpoint folder, or its README.md")
    parser.add_argument("summary", nargs="+", help="summary.json files of evaluations of this checkpoint")
    arguments = parser.parse_args(argv)
    try:
        for summary in arguments.summary:
            add_results(arguments.checkpoint, summary)
    except ValueError as error:
        print(error_text("error", error), file=sys.stderr)
        return 1
    print(json.dumps({"card": arguments.checkpoint, "results": arguments.summary}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
