"""Checkpoints that the tiny runs of `syvla-tables` start from.

    python -m syvla.training.paper_tables.tiny_base random DATASET OUTPUT
    python -m syvla.training.paper_tables.tiny_base fresh-queries CHECKPOINT OUTPUT

`random` writes a tiny SyVLA with random weights and the data's statistics; `fresh-queries` writes the same checkpoint with
query tokens drawn anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from syvla.command_line import error_text
from syvla.training.demo import CAMERAS, EMBODIMENT, UNITS


def build_random_base(
    dataset: str | Path, output: str | Path, action_head: str = "flow_matching", seed: int = 0
) -> int:
    """A tiny SyVLA with the paper's 20 query tokens, and the dataset's statistics in its processor.

    Args:
        dataset: Demonstrations of the tabletop.
        output: Folder of the checkpoint.
        action_head: See [`SyVLAConfig`].
        seed: Seed of the weights.

    Returns:
        Number of parameters.
    """
    import torch

    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
    from syvla.processing import RobotDataset
    from syvla.processing.tiny_processor import build_tiny_processor

    config = SyVLAConfig.tiny(num_query_tokens=20, action_head=action_head)
    data = RobotDataset(dataset, embodiment=EMBODIMENT, cameras=CAMERAS, chunk_size=config.chunk_size)
    processor = build_tiny_processor(config)
    processor.set_embodiment(
        EMBODIMENT,
        data.statistics(),
        state_names=data.state_names,
        action_names=data.action_names,
        control_hz=data.fps,
        state_units=UNITS,
        action_units=UNITS,
    )
    torch.manual_seed(seed)
    model = SyVLAModel(config)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    return model.num_parameters()


def draw_fresh_queries(checkpoint: str | Path, output: str | Path, seed: int = 0) -> None:
    """Save a checkpoint with the query tokens of a new model, so that runs with other numbers of them start alike."""
    import torch

    model, processor = _load(checkpoint)
    torch.manual_seed(seed)
    model._init_weights(model.action_queries)
    model.save_pretrained(output)
    processor.save_pretrained(output)


def _load(checkpoint: str | Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoProcessor

    import syvla  # noqa: F401  registers the Auto classes

    return AutoModel.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m syvla.training.paper_tables.tiny_base`. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m syvla.training.paper_tables.tiny_base",
        description="Checkpoints that the tiny runs of syvla-tables start from.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    random = commands.add_parser("random", help="a tiny SyVLA with random weights")
    random.add_argument("dataset", help="demonstrations, whose statistics the processor gets")
    random.add_argument("--action-head", default="flow_matching", help="see SyVLAConfig")
    fresh = commands.add_parser("fresh-queries", help="a checkpoint with query tokens drawn anew")
    fresh.add_argument("checkpoint")
    for command in (random, fresh):
        command.add_argument("output", help="folder of the new checkpoint")
        command.add_argument("--seed", type=int, default=0, help="seed of what is drawn")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "random":
            build_random_base(arguments.dataset, arguments.output, arguments.action_head, arguments.seed)
        else:
            draw_fresh_queries(arguments.checkpoint, arguments.output, arguments.seed)
    except (ValueError, OSError) as error:
        print(error_text("error", error), file=sys.stderr)
        return 1
    print(json.dumps({"checkpoint": str(arguments.output)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
