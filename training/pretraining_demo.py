"""Pretraining in small, on a CPU: `python -m syvla.training.pretraining_demo`.

Records three robots that differ in dimensions, cameras and rate, writes small files in the schemas of the paper's five
multi-modal datasets, and pretrains a tiny SyVLA on their mixture with the settings of `recipes/pretrain.yaml` where size
allows. The run is done twice: once unbroken, once killed (SIGKILL) half-way and started again with the same command. Prints the
losses per robot and dataset, and whether the two runs agree; writes `report.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # started by its path
    from checkout import require_package

    require_package(__file__)

from syvla.processing.multimodal.sample_files import write_samples
from syvla.training.demo import prepare_output
from syvla.training.run.checkpoints import last_whole_checkpoint

logger = logging.getLogger(__name__)

HEAD, LEFT = "observation.images.head", "observation.images.left_wrist"


def record_robots(folder: Path, episodes: int) -> list[dict[str, Any]]:
    """Record three robots; returns entries of `robot_datasets`."""
    from syvla.evaluation.demonstration_recording import record_demonstrations

    common: dict[str, Any] = {"episodes": episodes, "progress": False}
    record_demonstrations(folder / "two_arms", env="tabletop", tasks=("lift",), use_videos=True, **common)
    options = {"control": "ee_delta", "control_hz": 20.0}
    record_demonstrations(folder / "tool_moves", env="tabletop", tasks=("place",), env_options=options, **common)
    one_arm(folder / "two_arms", folder / "one_arm")
    return [
        {"path": str(folder / "two_arms"), "embodiment": "two_arms"},
        {
            "path": str(folder / "tool_moves"),
            "embodiment": "tool_moves",
            "cameras": {"center": HEAD, "left_wrist": LEFT},
            "thought_source": None,
        },
        {"path": str(folder / "one_arm"), "embodiment": "one_arm", "delta_actions": True},
    ]


def one_arm(source: Path, target: Path) -> None:
    """Record the left arm of a two-armed recording as a robot of its own: 7 dimensions, one camera, half the rate."""
    from syvla.processing import RobotDataset, RobotDatasetWriter

    data = RobotDataset(source, embodiment="two_arms", chunk_size=1)
    names = [name for name in (data.state_names or []) if name.startswith("left")]
    features = {key: {"dtype": "float32", "shape": [7], "names": names} for key in ("observation.state", "action")}
    camera = {"observation.images.top": {**data.features[HEAD], "dtype": "image"}}
    with RobotDatasetWriter(
        target, fps=int(data.fps) // 2, features={**camera, **features}, use_videos=False, thoughts=True
    ) as writer:
        for start, length in zip(data.episode_starts, data.episode_lengths, strict=True):
            for index in range(int(start), int(start + length), 2):
                item = data[index]
                frame = {
                    "observation.images.top": item["images"]["center"],
                    "observation.state": item["state"][:7],
                    "action": item["actions"][0, :7],
                }
                writer.add_frame(frame, item["text"], item["thought"])
            writer.save_episode()


def build_base(folder: Path, seed: int = 0) -> None:
    """A tiny SyVLA with random weights that knows no robot yet."""
    import torch

    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
    from syvla.processing import build_tiny_processor

    torch.manual_seed(seed)
    config = SyVLAConfig.tiny(embodiments={})
    SyVLAModel(config).save_pretrained(folder)
    build_tiny_processor(config).save_pretrained(folder)


def pretraining_arguments(
    base: Path, output: Path, robots: Sequence[dict[str, Any]], chats: Sequence[dict[str, Any]], **options: Any
) -> list[str]:
    """Command line of `syvla-pretrain` for the tiny model."""
    values = {
        "model_path": base,
        "output_dir": output,
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-4,
        "warmup_steps": 4,
        "per_device_train_batch_size": 20,
        "length_bucket": 32,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }
    words = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    return [*words, "--robot_datasets", *map(json.dumps, robots), "--multimodal_datasets", *map(json.dumps, chats)]


def pretrain(arguments: Sequence[str], kill_after: Path | None = None) -> int:
    """Run `training/pretrain.py` in a process of its own; with `kill_after`, kill it once this checkpoint is whole.

    Returns:
        Its exit status, minus the number of the signal that ended it.

    Raises:
        RuntimeError: If it fails, or ends before it can be killed.
    """
    # Threads that spin while they wait make a step many times slower as soon as anything else runs on the machine.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    log = Path(arguments[arguments.index("--output_dir") + 1]).with_suffix(".log")
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "syvla.training.pretrain", *arguments], stdout=file, stderr=file, env=environment
        )
        while kill_after is not None and process.poll() is None:
            if kill_after.is_dir():
                process.send_signal(signal.SIGKILL)
            time.sleep(0.02)
        status = process.wait()
    if status != (0 if kill_after is None else -signal.SIGKILL):
        raise RuntimeError(f"pretraining ended with exit status {status}; see {log}")
    return status


def losses_of(output: Path) -> list[dict[str, float]]:
    """Log entries of a run, without what depends on the clock."""
    entries = json.loads((output / "log_history.json").read_text(encoding="utf-8"))
    kept = ("loss", "action_loss", "lm_loss", "grad_norm", "decoupling")
    return [{k: v for k, v in entry.items() if k.startswith(kept)} for entry in entries if "loss" in entry]


def loss_table(losses: Sequence[dict[str, float]], group: str) -> list[list[str]]:
    """Rows (name, loss, action loss, language loss) with the means of the first and the last quarter."""
    quarter = max(1, len(losses) // 4)
    names = sorted({key.split("/", 1)[1] for entry in losses for key in entry if f"_by_{group}/" in key})

    def mean(key: str, entries: Sequence[dict[str, float]]) -> float | None:
        values = [entry[key] for entry in entries if key in entry]
        return sum(values) / len(values) if values else None

    rows = []
    for name in names:
        cells = []
        for part in ("loss", "action_loss", "lm_loss"):
            ends = [mean(f"{part}_by_{group}/{name}", e) for e in (losses[:quarter], losses[-quarter:])]
            cells.append(" -> ".join("-" if value is None else f"{value:.3f}" for value in ends))
        rows.append([name, *cells])
    return rows


def run_demo(output: Path, steps: int, episodes: int) -> dict[str, Any]:
    """Everything. Returns the report."""
    started = time.monotonic()
    prepare_output(output)
    logger.info("recording three robots and writing five multi-modal files")
    robots = record_robots(output / "data", episodes)
    chats = write_samples(output / "data" / "multimodal")
    build_base(output / "base")
    every = max(1, steps // 4)
    options: dict[str, Any] = {"max_steps": steps, "save_strategy": "steps", "save_steps": every, "save_total_limit": 2}
    options["resume_from_checkpoint"] = "auto"
    whole, killed = output / "unbroken", output / "killed"
    logger.info("pretraining for %d steps", steps)
    pretrain(pretraining_arguments(output / "base", whole, robots, chats, **options))
    logger.info("the same, killed half-way")
    arguments = pretraining_arguments(output / "base", killed, robots, chats, **options)
    half = killed / f"checkpoint-{2 * every}"
    status = pretrain(arguments, kill_after=half)
    resumed_from = last_whole_checkpoint(killed)
    logger.info("exit status %d; started again, it goes on from %s", status, resumed_from)
    pretrain(arguments)
    expected, got = losses_of(whole), losses_of(killed)
    entries = [e for e in json.loads((whole / "log_history.json").read_text(encoding="utf-8")) if "loss" in e]
    report = {
        "steps": steps,
        "identical": expected == got,
        "resumed_from": str(resumed_from),
        "loss_first": expected[0]["loss"],
        "loss_last": expected[-1]["loss"],
        "by_embodiment": loss_table(expected, "embodiment"),
        "by_source": loss_table(expected, "source"),
        "skipped_rows": {k: v for k, v in entries[-1].items() if k.startswith("skipped_rows/")},
        "samples_per_second": entries[-1]["speed/samples_per_second"],
        "data_wait_share": entries[-1]["speed/data_wait_share"],
        "seconds": round(time.monotonic() - started, 1),
    }
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status, 1 as well if the resumed run differs."""
    parser = argparse.ArgumentParser(
        prog="python -m syvla.training.pretraining_demo",
        description=(__doc__ or "").split("\n\n")[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/pretraining_demo"), help="folder of all it writes")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps, at least 4")
    parser.add_argument("--episodes", type=int, default=6, help="recorded episodes per robot")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    try:
        report = run_demo(options.output, options.steps, options.episodes)
    except (FileExistsError, RuntimeError, ValueError) as error:
        print(f"pretraining demo: {error}", file=sys.stderr)
        return 1
    for group in ("embodiment", "source"):
        rows = [[group, "loss", "action loss", "language loss"], *report[f"by_{group}"]]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        print("\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows), "\n")
    print("rows skipped:", ", ".join(f"{k.split('/', 1)[1]} {v}" for k, v in report["skipped_rows"].items()) or "none")
    print(
        f"killed, then resumed from {report['resumed_from']}: losses and gradient norms of all {report['steps']} steps"
    )
    print(
        "are those of the unbroken run, bit for bit" if report["identical"] else "DIFFER from those of the unbroken run"
    )
    print(f"{report['seconds']:.0f} s in all; see {options.output / 'report.json'}")
    return 0 if report["identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
