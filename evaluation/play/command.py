"""`syvla-play`: opens a page on which a person instructs a policy on the simulated tabletop."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from syvla.command_line import CommandParser, error_text

from .session import load_tabletop_policy

CHECKPOINT = "checkpoints/tabletop-lift"
"""The checkpoint of a checkout."""


def find_checkpoint(given: str | None) -> str:
    """The checkpoint asked for, else the checkout's own.

    Raises:
        FileNotFoundError: None was named, and the package does not run from a checkout.
    """
    if given is not None:
        return given
    own = Path(__file__).resolve().parents[2] / CHECKPOINT
    if not own.is_dir():
        raise FileNotFoundError(
            f"model: {own} does not exist, as only a checkout has it; name one: syvla-play --model FOLDER"
        )
    return str(own)


def build_parser() -> argparse.ArgumentParser:
    """Command line of `syvla-play`."""
    parser = CommandParser(
        prog="syvla-play",
        description="A page on which a person instructs a policy on the simulated tabletop and sees what happens inside it.",
        example="syvla-play --model outputs/demo/checkpoint",
    )
    parser.add_argument("--model", help=f"checkpoint folder or Hub id (default: {CHECKPOINT} of the checkout)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860, help="port; 0 takes a free one")
    parser.add_argument("--device", help="torch device; by default a GPU where there is one")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-play`; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        from .page import build_page, launch_options
    except ModuleNotFoundError as error:
        print(f"syvla-play: {error.name} is missing; type: pip install 'syvla[play]'", file=sys.stderr)
        return 1
    try:
        page = build_page(load_tabletop_policy(find_checkpoint(arguments.model), device=arguments.device))
        _, url, _ = page.launch(
            server_name=arguments.host,
            server_port=arguments.port or None,
            inbrowser=not arguments.no_browser,
            prevent_thread_lock=True,
            quiet=True,
            **launch_options(),
        )
    except (OSError, ValueError, ImportError) as error:
        print(error_text("syvla-play", error), file=sys.stderr)
        return 1
    print(f"open {url} (Ctrl-C ends it)", flush=True)
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
