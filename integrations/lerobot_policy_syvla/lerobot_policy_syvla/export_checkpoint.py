"""Turns a LeRobot checkpoint of SyVLA into a SyVLA checkpoint, which transformers loads.

python -m lerobot_policy_syvla.export_checkpoint OUTPUTS/checkpoints/last/pretrained_model outputs/my_syvla
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import syvla  # noqa: F401  gives the processor its place among a checkpoint's remote code

from . import processor_syvla
from .modeling_syvla import LeRobotSyVLAPolicy


def export_checkpoint(source: str | Path, output: str | Path, revision: str | None = None) -> None:
    """Writes the weights, bit by bit the same, and the processor with its statistics.

    Args:
        source: Folder or Hub id of the LeRobot checkpoint.
        output: Folder for the SyVLA checkpoint; must not hold files yet.
        revision: Branch, tag or commit of a Hub source.
    """
    output = Path(output)
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; choose another folder")
    policy = LeRobotSyVLAPolicy.from_pretrained(source, revision=revision)
    processor = processor_syvla.load_saved_processor(str(source), revision)
    policy.model.save_pretrained(output)
    processor.save_pretrained(output)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder or Hub id of the LeRobot checkpoint")
    parser.add_argument("output", help="folder for the SyVLA checkpoint")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub source")
    arguments = parser.parse_args(argv)
    export_checkpoint(arguments.source, arguments.output, arguments.revision)
    print(f"wrote {arguments.output}; load it with AutoModel.from_pretrained and AutoProcessor.from_pretrained")


if __name__ == "__main__":
    main()
