"""`make demo`: the whole way from a simulator to a measured policy, on a laptop's CPU.

Records demonstrations of a scripted expert, builds a tiny SyVLA, measures it, fine-tunes it with `training/finetune.py`
as any checkpoint is fine-tuned, and measures the result on the same evaluation seeds, which no demonstration uses.
Writes `report.json` and `index.html`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # started by its path
    from checkout import require_package

    require_package(__file__)

from syvla.command_line import error_text
from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.closed_loop_result import ClosedLoopResult, write_summary
from syvla.evaluation.report_page import ReportPage

logger = logging.getLogger(__name__)

MARKER = ".syvla-demo"
"""File that marks a folder as the demo's own, which it may make anew."""

TRAINING_THREADS = 2
"""The tiny model's tensors gain nothing from more."""

DEMONSTRATION_SEEDS = 10_000
"""The simulator's seeds of two of the demo's seeds begin this far apart, so that no two share a demonstration."""

RECIPE = Path(__file__).with_name("recipes") / "demo.yaml"
EMBODIMENT = "tabletop"
UNITS = [*["rad"] * 6, "m"] * 2
"""Of state and action: six joint angles and the gripper opening, left arm first."""
CAMERAS = {
    "center": "observation.images.head",
    "left_wrist": "observation.images.left_wrist",
    "right_wrist": "observation.images.right_wrist",
}


@dataclass
class DemoSettings:
    """What the demo does.

    Attributes:
        output: Folder of everything it writes.
        task: Task of the tabletop.
        demonstrations: Recorded episodes.
        episodes: Evaluation episodes, before and after.
        train_steps: Optimizer steps; None takes the recipe's.
        replan_steps: Actions executed of each chunk.
        think: Whether the policy thinks before it acts during evaluation.
        max_new_tokens: Longest thought, in tokens; the longest of the experts has 14.
        video_episodes: Recorded evaluation episodes.
        seed: Seed of the demonstrations, the initial weights, training, and the starts of the evaluation.
        threads: Threads of training; more than the machine has processors are not taken.
    """

    output: Path = Path("outputs/demo")
    task: str = "lift"
    demonstrations: int = 200
    episodes: int = 40
    train_steps: int | None = None
    replan_steps: int = 4
    think: bool = True
    max_new_tokens: int = 20
    video_episodes: int = 4
    seed: int = 0
    threads: int = TRAINING_THREADS

    @property
    def dataset(self) -> Path:
        return self.output / "dataset"

    @property
    def base(self) -> Path:
        """Checkpoint before fine-tuning."""
        return self.output / "base"

    @property
    def checkpoint(self) -> Path:
        """Checkpoint after fine-tuning."""
        return self.output / "checkpoint"


QUICK = {"demonstrations": 8, "episodes": 4, "train_steps": 20, "video_episodes": 1}
"""What `--quick` changes: the same way with too little data and training to learn anything."""


class Stages:
    """Announces stages, counts them and times them, by the clock and in seconds of processors, which hardly depend on load.

    Args:
        count: How many there will be.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.seconds: dict[str, float] = {}
        self.processor_seconds: dict[str, float] = {}

    @contextmanager
    def run(self, name: str, announcement: str) -> Iterator[None]:
        """Times the body as stage `name`."""
        logger.info("%d/%d %s", len(self.seconds) + 1, self.count, announcement)
        started, used = time.monotonic(), _processor_seconds()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        self.processor_seconds[name] = round(_processor_seconds() - used, 1)


def _processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def prepare_output(output: Path) -> None:
    """Makes an empty folder, or empties one that an earlier demo made.

    Raises:
        FileExistsError: If the folder holds anything else.
    """
    if output.exists() and any(output.iterdir()):
        if not (output / MARKER).is_file():
            raise FileExistsError(f"output: {output} is not empty and was not made by the demo; name another folder")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).write_text("Made by `python -m syvla.training.demo`, which may replace this folder.\n")


def record(settings: DemoSettings) -> dict[str, Any]:
    """Records the demonstrations; returns the recording's summary."""
    from syvla.evaluation.demonstration_recording import record_demonstrations

    return record_demonstrations(
        settings.dataset,
        episodes=settings.demonstrations,
        tasks=(settings.task,),
        seed=DEMONSTRATION_SEEDS * settings.seed,
    )


def build_base(settings: DemoSettings) -> int:
    """Saves a tiny SyVLA with random weights, and the dataset's statistics in its processor.

    Returns:
        Number of parameters.
    """
    import torch

    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
    from syvla.processing import RobotDataset
    from syvla.processing.tiny_processor import build_tiny_processor

    config = SyVLAConfig.tiny()
    dataset = RobotDataset(settings.dataset, embodiment=EMBODIMENT, cameras=CAMERAS, chunk_size=config.chunk_size)
    processor = build_tiny_processor(config)
    processor.set_embodiment(
        EMBODIMENT,
        dataset.statistics(),
        state_names=dataset.state_names,
        action_names=dataset.action_names,
        control_hz=dataset.fps,
        cameras=dict(dataset.cameras),
        state_units=UNITS,
        action_units=UNITS,
    )
    torch.manual_seed(settings.seed)
    model = SyVLAModel(config)
    model.save_pretrained(settings.base)
    processor.save_pretrained(settings.base)
    return model.num_parameters()


def training_command(settings: DemoSettings) -> list[str]:
    """The command that fine-tunes `settings.base`, as a user would type it."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    # Without it accelerate gives a CPU process one thread.
    launch += ["--num_cpu_threads_per_process", str(min(settings.threads, os.cpu_count() or 1))]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    arguments: dict[str, Any] = {
        "config": RECIPE,
        "model_path": settings.base,
        "robot_datasets": json.dumps({"path": str(settings.dataset), "embodiment": EMBODIMENT, "cameras": CAMERAS}),
        "output_dir": settings.checkpoint,
        "seed": settings.seed,
    }
    if settings.train_steps is not None:
        arguments["max_steps"] = settings.train_steps
        arguments["logging_steps"] = max(1, settings.train_steps // 20)
    script = Path(__file__).with_name("finetune.py")
    return [*launch, str(script), *(text for name, value in arguments.items() for text in (f"--{name}", str(value)))]


def train(settings: DemoSettings) -> list[dict[str, Any]]:
    """Fine-tunes in a process of its own; returns the trainer's log.

    Raises:
        RuntimeError: If training fails.
    """
    command = training_command(settings)
    (settings.output / "training_command.txt").write_text(shlex.join(command) + "\n")
    # Threads that spin while they wait make a step many times slower as soon as anything else runs on the machine.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise RuntimeError(f"training ended with exit status {status}; its messages stand above")
    history: list[dict[str, Any]] = json.loads((settings.checkpoint / "log_history.json").read_text())
    return history


def evaluate(settings: DemoSettings, model: Path, name: str, video_episodes: int) -> ClosedLoopResult:
    """Measures closed-loop success on the evaluation starts of the demo's seed."""
    output = settings.output / f"evaluation_{name}"
    result = evaluate_closed_loop(
        str(model),
        "tabletop",
        settings.task,
        episodes=settings.episodes,
        seed=settings.seed,
        batch_size=20,
        replan_steps=settings.replan_steps,
        policy_options={"think": settings.think, "max_new_tokens": settings.max_new_tokens, "name": name},
        output=output,
        video_episodes=video_episodes,
    )
    write_summary(result, output / "summary.json")
    return result


def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Runs every stage and writes report and page.

    Returns:
        The report.
    """
    stages = Stages(5)
    prepare_output(settings.output)
    with stages.run("recording", f"recording {settings.demonstrations} demonstrations of {settings.task}"):
        recording = record(settings)
    with stages.run("building", "building a tiny SyVLA with random weights"):
        parameters = build_base(settings)
    with stages.run("evaluation_before", "closed loop before training"):
        before = evaluate(settings, settings.base, "before", 0)
    with stages.run("training", "fine-tuning with training/finetune.py"):
        history = train(settings)
    with stages.run("evaluation_after", "closed loop after training, on the same seeds"):
        after = evaluate(settings, settings.checkpoint, "after", settings.video_episodes)
    report = {
        "success_before": before.total.rate,
        "success_after": after.total.rate,
        "interval_before": list(before.total.interval),
        "interval_after": list(after.total.interval),
        "episodes": after.total.episodes,
        "seconds": round(sum(stages.seconds.values()), 1),
        "checkpoint": str(settings.checkpoint),
        "dataset": str(settings.dataset),
        "seconds_by_stage": stages.seconds,
        "processor_seconds_by_stage": stages.processor_seconds,
        "parameters": parameters,
        "demonstrations": {key: recording[key] for key in ("episodes", "frames") if key in recording},
        "evaluation_seeds": [min(r.seed for r in after.records), max(r.seed for r in after.records)],
        "settings": {**asdict(settings), "output": str(settings.output)},
        "machine": _machine(),
    }
    write_page(settings, report, before, after, history)
    (settings.output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def write_page(
    settings: DemoSettings,
    report: dict[str, Any],
    before: ClosedLoopResult,
    after: ClosedLoopResult,
    history: Sequence[dict[str, Any]],
) -> None:
    """Writes `index.html`."""
    videos = settings.output / "evaluation_after"
    facts = {
        "checkpoint": report["checkpoint"],
        "dataset": f"{report['dataset']} ({settings.demonstrations} demonstrations)",
        "evaluation seeds": "{} to {}; demonstrations use lower ones".format(*report["evaluation_seeds"]),
        "parameters": f"{report['parameters']:,}",
        "seconds": f"{report['seconds']:.0f} in all; "
        + ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in report["seconds_by_stage"].items()),
        "machine": ", ".join(f"{name} {value}" for name, value in report["machine"].items()),
    }
    page = ReportPage(
        title=f"SyVLA demo: {settings.task}",
        lead=f"A tiny SyVLA, fine-tuned from random weights on {settings.demonstrations} demonstrations recorded in a "
        f"simulator, and measured on {report['episodes']} situations that it has not seen, before and after.",
        rates={"before training": before.total, "after training": after.total},
        loss_history=history,
        recordings=[(record, videos / record.video) for record in after.records if record.video],
        code=loading_code(report["checkpoint"]),
        facts=facts,
    )
    page.write(settings.output / "index.html")


def loading_code(checkpoint: str) -> str:
    """The three lines that load the checkpoint."""
    return (
        "import syvla; from transformers import AutoModel, AutoProcessor\n"
        f'model = AutoModel.from_pretrained("{checkpoint}")\n'
        f'processor = AutoProcessor.from_pretrained("{checkpoint}")\n'
    )


def _machine() -> dict[str, Any]:
    import torch
    import transformers

    return {
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def build_parser() -> argparse.ArgumentParser:
    """Command line of the demo."""
    defaults = DemoSettings()
    parser = argparse.ArgumentParser(
        prog="python -m syvla.training.demo",
        description="Record, fine-tune, evaluate: SyVLA end to end in a simulator.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="next to no data and training; too short to learn")
    parser.add_argument("--output", type=Path, default=defaults.output, help="folder of everything it writes")
    parser.add_argument("--task", default=defaults.task, help="task of the tabletop")
    parser.add_argument("--demonstrations", type=int, help=f"recorded episodes (default: {defaults.demonstrations})")
    parser.add_argument("--episodes", type=int, help=f"evaluation episodes (default: {defaults.episodes})")
    parser.add_argument("--train-steps", type=int, help="optimizer steps; by default the recipe's")
    parser.add_argument("--video-episodes", type=int, help=f"recorded episodes (default: {defaults.video_episodes})")
    parser.add_argument(
        "--seed",
        type=int,
        default=defaults.seed,
        help="of demonstrations, initial weights, training and evaluation starts",
    )
    parser.add_argument("--threads", type=int, default=defaults.threads, help="threads of training")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    import torch

    torch.set_num_threads(1)  # of the evaluations in this process: their tensors are smaller still
    arguments = vars(build_parser().parse_args(argv))
    quick = QUICK if arguments.pop("quick") else {}
    given = {name: value for name, value in arguments.items() if value is not None}
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    settings = DemoSettings(**{**quick, **given})
    try:
        report = run_demo(settings)
    except (FileExistsError, RuntimeError, ValueError, ImportError) as error:
        print(error_text("demo", error), file=sys.stderr)
        return 1
    for name in ("before", "after"):
        low, high = (100 * bound for bound in report[f"interval_{name}"])
        print(f"success {name}: {100 * report[f'success_{name}']:.1f}% [{low:.1f}, {high:.1f}]")
    print(f"{report['episodes']} episodes, {report['seconds']:.0f} s in all; see {settings.output / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
