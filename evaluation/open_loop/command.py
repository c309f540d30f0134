"""`syvla-openloop CHECKPOINT DATASET`: how near a policy's action chunks are to recorded ones, on episodes held out."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from syvla.command_line import CommandParser, error_text
from syvla.durable_files import write_json

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Command line of `syvla-openloop`."""
    parser = CommandParser(
        prog="syvla-openloop",
        description="Predicted against recorded action chunks on held-out episodes, beside predictions that need no learning.",
        example="syvla-openloop outputs/my_task me/my_task",
    )
    parser.add_argument("checkpoint", help="folder or Hub id of a checkpoint")
    parser.add_argument("dataset", help="folder or Hub id of a LeRobot dataset")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--episodes", metavar="3,7-9", help="episodes to compare on; by default those that the training run held out"
    )
    data.add_argument("--embodiment", help="name of the robot; by default the checkpoint's only one")
    data.add_argument(
        "--camera", action="append", default=[], metavar="VIEW=FEATURE", help="camera of a view; by default as trained"
    )
    data.add_argument(
        "--reader", type=json.loads, default={}, metavar="JSON", help="arguments of RobotDataset, such as state_key"
    )
    data.add_argument(
        "--accept", nargs="+", default=[], metavar="KIND", help="measure although these differ: names, rate, statistics"
    )
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--stride", type=int, help="frames between two moments; by default half a chunk")
    asked.add_argument("--steps", type=int, help="compare only the first steps of each chunk; by default all")
    asked.add_argument("--draws", type=int, default=4, help="draws of the noise at each moment")
    asked.add_argument("--seed", type=int, default=0, help="seed of the noise")
    asked.add_argument("--think", action="store_true", help="generate a thought before each chunk")
    asked.add_argument("--max-new-tokens", type=int, help="longest thought in tokens; by default the model's")
    asked.add_argument("--num-steps", type=int, help="Euler steps of the flow; by default the model's")
    asked.add_argument(
        "--neighbor-images", type=int, default=2000, help="training frames to find the most similar one among; 0: none"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="moments per call of the policy")
    parser.add_argument("--device", help="torch device; by default a GPU where there is one")
    parser.add_argument("--dtype", default="auto", help="parameter dtype, such as bfloat16; auto: as syvla-eval")
    parser.add_argument("--plots", type=int, default=3, help="episodes to draw")
    parser.add_argument("--worst", type=int, default=6, help="worst moments to show")
    parser.add_argument("--output", type=Path, default=Path("outputs/openloop"), help="folder of the report")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, and writes `index.html`, `openloop.json` and `chunks.npz`. Returns what the JSON file holds."""
    from syvla.serving.policies.in_process import SyVLAPolicy
    from syvla.serving.policies.loading import load_for_inference

    from .episodes import EpisodeRequest, open_episodes, parse_episodes
    from .evaluation import evaluate_open_loop
    from .page import write_page

    if min(arguments.plots, arguments.worst, arguments.neighbor_images) < 0:
        raise ValueError("expected plots, worst and neighbor-images of 0 or more")
    model, processor = load_for_inference(arguments.checkpoint, device=arguments.device, dtype=arguments.dtype)
    request = EpisodeRequest(
        arguments.dataset,
        None if arguments.episodes is None else parse_episodes(arguments.episodes),
        arguments.embodiment,
        _cameras(arguments.camera),
        arguments.reader,
        arguments.accept,
        arguments.steps,
    )
    opened = open_episodes(request, processor, arguments.checkpoint)
    dataset = opened.held_out
    policy = SyVLAPolicy(
        model, processor, dataset.embodiment, {view: view for view in dataset.cameras}, think=arguments.think,
        max_new_tokens=arguments.max_new_tokens, num_steps=arguments.num_steps, name=arguments.checkpoint,
    )  # fmt: skip
    stride = arguments.stride if arguments.stride is not None else max(1, (arguments.steps or policy.chunk_size) // 2)
    result = evaluate_open_loop(
        policy, dataset, opened.training, stride=stride, steps=arguments.steps, draws=arguments.draws,
        seed=arguments.seed, batch_size=arguments.batch_size, neighbor_images=arguments.neighbor_images,
        seen_in_training=opened.seen_in_training, progress=not arguments.quiet,
    )  # fmt: skip
    facts = _facts(arguments, opened, policy, stride, len(result.moments))
    report = {"settings": facts, "policy": policy.identity(), **result.to_dict()}
    arguments.output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        arguments.output / "chunks.npz",
        predicted=result.predictions.actions,
        recorded=result.moments.actions,
        real=result.moments.real,
        episode=result.moments.episodes,
        frame=result.moments.frames,
    )
    title = f"Open loop: {_short(arguments.checkpoint)} on {_short(arguments.dataset)}"
    write_page(
        arguments.output / "index.html", result, dataset, title=title, facts=_texts(facts),
        control_hz=dataset.control_hz, plots=arguments.plots, worst=arguments.worst,
    )  # fmt: skip
    write_json(arguments.output / "openloop.json", report)
    return report


def _facts(arguments: argparse.Namespace, opened: Any, policy: Any, stride: int, moments: int) -> dict[str, Any]:
    dataset = opened.held_out
    return {
        "checkpoint": str(arguments.checkpoint),
        "dataset": str(arguments.dataset),
        "embodiment": dataset.embodiment,
        "cameras": dict(dataset.cameras),
        "episodes": list(dataset.episodes),
        "episodes_chosen": opened.origin,
        "training_episodes": 0 if opened.training is None else opened.training.num_episodes,
        "moments": moments,
        "stride": stride,
        "steps": arguments.steps or policy.chunk_size,
        "control_hz": dataset.control_hz,
        "draws": arguments.draws,
        "seed": arguments.seed,
        "think": arguments.think,
        "neighbor_images": arguments.neighbor_images if opened.training is not None else 0,
    }


def _texts(facts: dict[str, Any]) -> dict[str, str]:
    """Facts as the page lists them."""
    texts = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} = {item}" for name, item in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value[:40])) + (f" and {len(value) - 40} more" if len(value) > 40 else "")
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        texts[key.replace("_", " ")] = f"{value:g}" if isinstance(value, float) else str(value)
    return texts


def _short(path: str) -> str:
    """The last two parts of a path, which is the whole of a name on the Hub."""
    return "/".join(Path(path).parts[-2:])


def _cameras(pairs: Sequence[str]) -> dict[str, str] | None:
    cameras: dict[str, str] = {}
    for pair in pairs:
        view, separator, feature = pair.partition("=")
        if not view or not separator or not feature:
            raise ValueError(f"camera: expected VIEW=FEATURE, such as center=observation.images.top, got {pair!r}")
        cameras[view] = feature
    return cameras or None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-openloop`; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with logging_redirect_tqdm():
            report = run(arguments)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print(error_text("syvla-openloop", error), file=sys.stderr)
        return 1
    print(report["verdict"]["sentence"])
    for one in report["comparisons"]:
        interval = "" if one["interval"] is None else " [{:+.3f}, {:+.3f}]".format(*one["interval"])
        print(f"  {one['baseline']}: policy {one['policy_score']:.3f}, baseline {one['baseline_score']:.3f}{interval}")
    print(f"written to {arguments.output / 'index.html'} and openloop.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
