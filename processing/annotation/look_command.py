"""`syvla-look`: a dataset on a local page, or as a report in one HTML file. Changes nothing."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from syvla.command_line import CommandParser, error_text
from syvla.durable_files import write_text

from .annotator import Annotator
from .command import PORT, add_dataset_arguments
from .episode_data import EpisodeData
from .model_pictures import ModelPictures, load_model_pictures
from .overview import overview_of
from .report import report_page
from .serve_page import add_access_arguments, listen, page_address, run_server, token_of


def build_parser() -> argparse.ArgumentParser:
    """The command line of `syvla-look`."""
    parser = CommandParser(
        prog="syvla-look",
        description="Look at a LeRobot dataset: pictures, plots, statistics, odd episodes, copies, thoughts, and what "
        "syvla-clean would remove. Changes nothing.",
        example="syvla-look datasets/my_task --report report.html",
    )
    parser.add_argument("dataset", help="folder or Hub id of the dataset")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write one HTML file instead, then end")
    parser.add_argument(
        "--model", metavar="CHECKPOINT", help="show the pictures as this checkpoint's processor makes them"
    )
    parser.add_argument("--no-clean", action="store_true", help="leave out what decodes every picture")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode every picture")
    add_dataset_arguments(parser)
    add_access_arguments(parser, PORT)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-look`; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    reader = {name: getattr(arguments, name) for name in ("state_key", "action_key", "tolerance_s")}
    try:
        if arguments.workers < 1:
            raise ValueError(f"workers: expected at least 1, got {arguments.workers}")
        token = token_of(arguments)
        data = EpisodeData(arguments.dataset, **reader)
        annotator = Annotator(data, read_only=True)
        model = None if arguments.model is None else load_model_pictures(arguments.model, data.cameras)
        if arguments.report is not None:
            return _report(arguments, annotator, model, reader)
        return _serve(arguments, annotator, model, reader, token)
    except (ValueError, OSError, RuntimeError) as error:
        print(error_text("syvla-look", error), file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"syvla-look: {error}; run pip install 'syvla[annotate]'", file=sys.stderr)
        return 1


def _report(
    arguments: argparse.Namespace, annotator: Annotator, model: ModelPictures | None, reader: dict[str, object]
) -> int:
    if arguments.report.resolve().is_relative_to(annotator.data.root.resolve()):
        raise ValueError(
            f"report: {arguments.report} lies inside the dataset, which stays as it is; name another place"
        )
    clean = not arguments.no_clean
    overview = overview_of(annotator.data, clean=clean, workers=arguments.workers, progress=True, **reader)
    write_text(arguments.report, report_page(annotator, overview, model))
    print(f"written to {arguments.report}")
    return 0


def _serve(
    arguments: argparse.Namespace,
    annotator: Annotator,
    model: ModelPictures | None,
    reader: dict[str, object],
    token: str | None,
) -> int:
    from .look import Look
    from .server import build_app

    data = annotator.data
    look = Look(data, clean=not arguments.no_clean, workers=arguments.workers, model=model, **reader)
    bound = listen(arguments.host, arguments.port)
    look.start()
    address = page_address(arguments.host, bound)
    print(f"{data.name}: {data.num_episodes} episodes. Open {address} and press ? for the keys.", flush=True)
    run_server(build_app(annotator, token=token, look=look), bound)
    return 0


if __name__ == "__main__":
    sys.exit(main())
