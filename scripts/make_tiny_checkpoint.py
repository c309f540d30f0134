"""Makes the trained checkpoint that a checkout carries, `checkpoints/tabletop-lift`, and what was measured of it.

    make checkpoint                                   # all of it: about ten minutes on a quiet laptop
    .venv/bin/python scripts/make_tiny_checkpoint.py  # the same; goes on where it was cut short

Stages: what `make demo` does (200 demonstrations of `lift` by the scripted expert, a tiny SyVLA from random weights, 1000
optimizer steps), on one thread and with 200 episodes on unseen starts, then the card. Weights differ in their last digits from
machine to machine, so the hash in SHA256SUMS is that of the run whose outcomes `benchmarks/results/tiny_checkpoint.json` holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from syvla.evaluation.closed_loop_result import ClosedLoopResult
from syvla.training import demo
from syvla.training.hub.model_card import RUN_FILE, add_results

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "checkpoints" / "tabletop-lift"
RESULT = ROOT / "benchmarks" / "results" / "tiny_checkpoint.json"
WORK = Path("outputs/tiny_checkpoint")
COMMAND = "make checkpoint"
FILES = (
    *("config.json", "generation_config.json", "model.safetensors", "processor_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "chat_template.jinja", "README.md", "dataset_statistics.json", RUN_FILE),
)
"""What is kept of the checkpoint; the package has the code that a checkpoint on the Hub carries."""

SUMS = "SHA256SUMS"
MOST_BYTES = 5_000_000
SHARED_CODE = "import syvla  # pip install syvla; or pass trust_remote_code=True"
"""Line of the card that is not true of a checkpoint without code."""


def settings_in(folder: Path) -> demo.DemoSettings:
    """What is made, in this folder."""
    return demo.DemoSettings(output=folder, episodes=200, threads=1)


def train_policy(settings: demo.DemoSettings) -> None:
    """Records, builds and trains; what is there already is not made again."""
    settings.output.mkdir(parents=True, exist_ok=True)
    if not (settings.base / "model.safetensors").is_file():
        demo.record(settings)  # goes on with an unfinished recording by itself
        demo.build_base(settings)
    if not (settings.checkpoint / "model.safetensors").is_file():
        demo.train(settings)


def publish(settings: demo.DemoSettings, result: ClosedLoopResult, checkpoint: Path, measured: Path) -> None:
    """Writes checkpoint folder and measurement.

    Args:
        settings: Of the run.
        result: Its evaluation.
        checkpoint: Folder, made anew.
        measured: JSON file.

    Raises:
        ValueError: The weights are too large for a repository.
    """
    size = (settings.checkpoint / "model.safetensors").stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"model.safetensors: expected at most {MOST_BYTES} bytes, got {size}; take a smaller model")
    add_results(settings.checkpoint, settings.output / "evaluation_after" / "summary.json")
    if checkpoint.exists():
        shutil.rmtree(checkpoint)
    checkpoint.mkdir(parents=True)
    for name in FILES:
        if name == "model.safetensors":
            shutil.copyfile(settings.checkpoint / name, checkpoint / name)
        else:
            text = (settings.checkpoint / name).read_text(encoding="utf-8")
            (checkpoint / name).write_text(_portable(name, text, settings.output), encoding="utf-8")
    sums = [f"{hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(FILES)]
    (checkpoint / SUMS).write_text("".join(sums), encoding="utf-8")
    measured.write_text(json.dumps(measurement(settings, result, checkpoint), indent=1) + "\n", encoding="utf-8")


def measurement(settings: demo.DemoSettings, result: ClosedLoopResult, checkpoint: Path) -> dict[str, Any]:
    """Outcome of every episode, and how they came about."""
    weights = (checkpoint / "model.safetensors").read_bytes()
    return {
        "command": COMMAND,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "task": settings.task,
        "demonstrations": settings.demonstrations,
        "optimizer_steps": json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))["step"],
        "threads": settings.threads,
        "thinks": settings.think,
        "replan_steps": settings.replan_steps,
        "successes": result.total.successes,
        "episodes": result.total.episodes,
        "interval_95": list(result.total.interval),
        "outcomes": [
            {"seed": r.seed, "success": r.success, "steps": r.steps, "instruction": r.instruction}
            for r in result.records
        ],
        "settings": result.settings,
        "versions": result.run["versions"],
        "platform": result.run["platform"],
    }


def _portable(name: str, text: str, output: Path) -> str:
    """A file of the checkpoint without this machine's folders, and without code that is not there."""
    text = text.replace(str(output.resolve()), WORK.as_posix()).replace(str(output), WORK.as_posix())
    if name.endswith("config.json"):
        fields = json.loads(text)
        for entry in [fields, *(value for value in fields.values() if isinstance(value, dict))]:
            entry.pop("auto_map", None)
        return json.dumps(fields, indent=2) + "\n"
    if name == RUN_FILE:
        return text.replace('"model_name": "checkpoint"', f'"model_name": "{CHECKPOINT.name}"')
    if name == "README.md":
        text = text.replace("# checkpoint\n", f"# {CHECKPOINT.name}\n").replace(
            "- name: checkpoint", f"- name: {CHECKPOINT.name}"
        )
        text = text.replace('from_pretrained("checkpoint")', f'from_pretrained("{CHECKPOINT.relative_to(ROOT)}")')
        text = text.replace(SHARED_CODE, "import syvla").replace("- custom_code\n", "")
        text = text.replace("| yes | unknown |", "| yes | apache-2.0 |")  # this script's own recordings
    return text


def build_parser() -> argparse.ArgumentParser:
    """Command line of the script."""
    parser = argparse.ArgumentParser(
        prog="python scripts/make_tiny_checkpoint.py",
        description="Make checkpoints/tabletop-lift and benchmarks/results/tiny_checkpoint.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=WORK, help="folder of data and unfinished work")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    import torch

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    settings = settings_in(build_parser().parse_args(argv).output)
    try:
        train_policy(settings)
        result = demo.evaluate(settings, settings.checkpoint, "after", 0)
        publish(settings, result, CHECKPOINT, RESULT)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"make_tiny_checkpoint: {error}", file=sys.stderr)
        return 1
    print(f"lifted in {result.total} unseen starts; {CHECKPOINT.relative_to(ROOT)}, {RESULT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
