"""`syvla-annotate`: a local page on which a person marks the sub-tasks of a dataset's episodes."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from syvla.command_line import CommandParser, error_text
from syvla.processing.robot_data.lerobot_format import INFO_PATH
from syvla.processing.robot_data.vector_parts import DEFAULT_KEYS

from .access import read_token
from .annotator import Annotator
from .copying import parse_episodes
from .dataset_lock import require_annotatable
from .episode_data import EpisodeData
from .serve_page import add_access_arguments, listen, page_address, run_server, token_of

if TYPE_CHECKING:
    from .proposing import Proposer

PORT = 8765


def build_parser() -> argparse.ArgumentParser:
    """The command line of `syvla-annotate`."""
    parser = CommandParser(
        prog="syvla-annotate",
        description="Mark the sub-tasks of a LeRobot dataset's episodes on a local page. Training reads them as thoughts. "
        "Videos and other data stay as they are.",
        example="syvla-annotate datasets/my_task",
    )
    parser.add_argument("dataset", type=Path, nargs="?", help="folder of a LeRobot v3 dataset")
    add_dataset_arguments(parser)
    add_access_arguments(parser, PORT)
    model = parser.add_argument_group(
        "proposals", "A vision model proposes sub-tasks. They stay apart until a person accepts them on the page."
    )
    model.add_argument("--server", metavar="URL", help="OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    model.add_argument("--model", help="name on the server; by default its only one")
    model.add_argument("--key-file", type=Path, help="file with the server's API key")
    model.add_argument("--propose", action="store_true", help="ask about all episodes without sub-tasks, then end")
    model.add_argument("--episodes", metavar="LIST", help="with --propose: only these, such as '0-99, 120'")
    model.add_argument("--again", action="store_true", help="with --propose: also where there was a proposal already")
    model.add_argument("--at-once", type=int, default=8, help="with --propose: questions on their way at a time")
    model.add_argument("--verify", action="store_true", help="ask a second time if the proposal fits the instruction")
    model.add_argument("--frames", type=int, default=16, help="times of an episode that the model sees")
    model.add_argument("--cameras", nargs="+", metavar="KEY", help="cameras that the model sees; by default all")
    model.add_argument("--prompts", type=Path, help="file with the questions, see --write-prompts")
    model.add_argument("--write-prompts", type=Path, metavar="FILE", help="write the default questions, then end")
    return parser


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of how a dataset is read."""
    parser.add_argument("--state-key", default=DEFAULT_KEYS["state"], help="feature that is the robot's state")
    parser.add_argument("--action-key", default=DEFAULT_KEYS["action"], help="feature that is the action")
    parser.add_argument("--tolerance-s", type=float, default=1e-4, help="between a timestamp and its video frame")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-annotate`; returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        from .server import build_app
        from .vision_server import ServerError
    except ImportError as error:
        print(f"syvla-annotate: {error}; run pip install 'syvla[annotate]'", file=sys.stderr)
        return 1
    try:
        if arguments.write_prompts is not None:
            return _write_prompts(arguments.write_prompts)
        _check(parser, arguments)
        token = token_of(arguments)
        annotator = _open(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        print(error_text("syvla-annotate", error), file=sys.stderr)
        return 1
    status = 1
    try:
        proposer = _proposer(arguments, annotator)
        if arguments.propose:
            assert proposer is not None
            status = _propose(arguments, annotator, proposer)
        else:
            bound = listen(arguments.host, arguments.port)
            address, data = page_address(arguments.host, bound), annotator.data
            print(f"{data.name}: {data.num_episodes} episodes. Open {address} and press ? for the keys.", flush=True)
            ask = None if proposer is None else proposer.propose
            run_server(build_app(annotator, token=token, ask=ask), bound)
            status = 0
    except (ValueError, OSError, ServerError) as error:
        print(error_text("syvla-annotate", error), file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
    return max(status, _close(annotator, told=not arguments.propose))


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuses options that would have no effect."""
    if arguments.dataset is None:
        parser.error("the following arguments are required: dataset")
    needed = {"propose": "server", "model": "server", "key_file": "server", "verify": "server", "cameras": "server",
              "prompts": "server", "episodes": "propose", "again": "propose"}  # fmt: skip
    for name, other in needed.items():
        if getattr(arguments, name) and not getattr(arguments, other):
            parser.error(f"--{name.replace('_', '-')} has an effect with --{other} only")


def _open(arguments: argparse.Namespace) -> Annotator:
    if not arguments.dataset.is_dir():
        raise FileNotFoundError(
            f"{arguments.dataset}: no such folder; pass a folder that holds {INFO_PATH}. A dataset of the Hub must be "
            "downloaded first: `hf download NAME --repo-type dataset --local-dir FOLDER`"
        )
    require_annotatable(arguments.dataset)
    return Annotator(
        EpisodeData(
            arguments.dataset,
            state_key=arguments.state_key,
            action_key=arguments.action_key,
            tolerance_s=arguments.tolerance_s,
        )
    )


def _write_prompts(path: Path) -> int:
    from .vision_server import default_prompts

    if path.exists():
        raise FileExistsError(f"write-prompts: {path} exists; name another file")
    path.write_text(default_prompts(), encoding="utf-8")
    print(f"written to {path}; edit it and pass it with --prompts")
    return 0


def _proposer(arguments: argparse.Namespace, annotator: Annotator) -> Proposer | None:
    if arguments.server is None:
        return None
    from .proposing import Proposer
    from .vision_server import VisionServer, load_prompts

    key = None if arguments.key_file is None else read_token(arguments.key_file)
    return Proposer(
        annotator,
        VisionServer(arguments.server, arguments.model, key),
        load_prompts(arguments.prompts),
        frames=arguments.frames,
        verify=arguments.verify,
        cameras=arguments.cameras,
    )


def _propose(arguments: argparse.Namespace, annotator: Annotator, proposer: Proposer) -> int:
    """Asks about episodes that have neither sub-tasks nor a proposal; returns the exit status."""
    total = annotator.data.num_episodes
    wanted = range(total) if arguments.episodes is None else parse_episodes(arguments.episodes, total)
    done = annotator.annotated()
    asked = set() if arguments.again else {*annotator.proposals.episodes(), *annotator.proposals.decided()}
    left = [episode for episode in wanted if not done[episode] and episode not in asked]
    failed = {}
    with tqdm(total=len(left), desc="Asking the model", unit="episode") as bar:
        for episode, problem in proposer.propose_many(left, arguments.at_once):
            bar.update()
            if problem is not None:
                failed[episode] = problem
                bar.write(f"episode {episode}: {problem}", file=sys.stderr)
    doubtful = sum(bool(found.problems) for e in left if (found := annotator.proposals.get(e)) is not None)
    print(
        f"proposals: {len(left) - len(failed)}, doubtful ones among them: {doubtful}, episodes without one: {len(failed)}. "
        "Nothing is in the dataset until a person accepts it: P and A on the page."
        + (" The same command asks again about the episodes without one." if failed else "")
    )
    return 1 if failed else 0


def _close(annotator: Annotator, *, told: bool) -> int:
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
    if told:
        print("Every change is in the dataset.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
