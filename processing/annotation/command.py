"""`syvla-annotate`: a local page on which a person marks the sub-tasks of a dataset's episodes."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from syvla.processing.robot_data.lerobot_format import INFO_PATH
from syvla.processing.robot_data.vector_parts import DEFAULT_KEYS

from .annotator import Annotator
from .dataset_lock import require_annotatable
from .episode_data import EpisodeData
from .serve_page import add_access_arguments, listen, page_address, run_server, token_of

PORT = 8765


def build_parser() -> argparse.ArgumentParser:
    """The command line of `syvla-annotate`."""
    parser = argparse.ArgumentParser(
        prog="syvla-annotate",
        description="Mark the sub-tasks of a LeRobot dataset's episodes on a local page. Training reads them as thoughts. "
        "Videos and other data stay as they are.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("dataset", type=Path, help="folder of a LeRobot v3 dataset")
    add_dataset_arguments(parser)
    add_access_arguments(parser, PORT)
    return parser


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of how a dataset is read."""
    parser.add_argument("--state-key", default=DEFAULT_KEYS["state"], help="feature that is the robot's state")
    parser.add_argument("--action-key", default=DEFAULT_KEYS["action"], help="feature that is the action")
    parser.add_argument("--tolerance-s", type=float, default=1e-4, help="between a timestamp and its video frame")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-annotate`; returns the exit status."""
    try:
        from .server import build_app
    except ImportError as error:
        print(f"syvla-annotate: {error}; run pip install 'syvla[annotate]'", file=sys.stderr)
        return 1
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    arguments = build_parser().parse_args(argv)
    try:
        token = token_of(arguments)
        if not arguments.dataset.is_dir():
            raise FileNotFoundError(
                f"{arguments.dataset}: no such folder; pass a folder that holds {INFO_PATH}. A dataset of the Hub must be "
                "downloaded first: `hf download NAME --repo-type dataset --local-dir FOLDER`"
            )
        require_annotatable(arguments.dataset)
        data = EpisodeData(
            arguments.dataset,
            state_key=arguments.state_key,
            action_key=arguments.action_key,
            tolerance_s=arguments.tolerance_s,
        )
        bound = listen(arguments.host, arguments.port)
        annotator = Annotator(data)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"syvla-annotate: {error}", file=sys.stderr)
        return 1
    try:
        address = page_address(arguments.host, bound)
        print(f"{data.name}: {data.num_episodes} episodes. Open {address} and press ? for the keys.", flush=True)
        run_server(build_app(annotator, token=token), bound)
    finally:
        status = _close(annotator)
    return status


def _close(annotator: Annotator) -> int:
    def progress(files: Iterable[Path]) -> Iterator[Path]:
        listed = list(files)
        yield from tqdm(listed, desc="Adding the column to every data file", unit="file", disable=not listed)

    try:
        annotator.close(progress)
    except (OSError, ValueError) as error:
        print(
            f"syvla-annotate: {error}\nYour changes are kept in the dataset's folder; the next start writes them.",
            file=sys.stderr,
        )
        return 1
    print("Every change is in the dataset.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
