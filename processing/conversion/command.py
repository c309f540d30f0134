"""Converts robot demonstrations of other formats to LeRobot v3.0 (`syvla-convert`); the source stays as it is.

What the files do not say, the rate, the units, the convention of a gripper, stands in a mapping file. `--write-mapping`
writes a first one: the preset of a known robot, or every key by its own name. Run the same command again to go on with a
conversion that was interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from syvla.command_line import CommandParser, error_text
from syvla.durable_files import write_text

from .formats import FORMATS, open_source
from .mapping import ConversionMapping, load_mapping, load_preset, presets
from .pipeline import REPORT_PATHS, convert
from .proposal import propose
from .source import Source, SourceError


def choose_mapping(
    source: Source, *, mapping: Path | None, preset: str | None, propose_unknown: bool = False
) -> ConversionMapping:
    """The mapping that a file, a preset's name or the source itself says.

    Raises:
        ValueError: Both are given, it cannot be used, or the source is unknown and `propose_unknown` is not set.
    """
    if mapping is not None and preset is not None:
        raise SourceError("mapping and preset: give one of them")
    if mapping is not None:
        return load_mapping(mapping)
    name = preset or source.preset()
    if name is not None:
        return load_preset(name)
    if propose_unknown:
        return propose(source)
    raise SourceError(
        f"{source.root}: an unknown robot; write a mapping with --write-mapping FILE, edit it, and pass it with --mapping"
        f" (presets: {presets()})"
    )


def mapping_text(mapping: ConversionMapping) -> str:
    """A mapping as YAML, with what must be filled in on top."""
    import yaml

    head = [
        "# Which source key becomes which dimension, in which convention; see docs/datasets.md. Edit, then --mapping."
    ]
    head += [f"# TO DO: {question}" for question in mapping.open_questions()]
    if any(spec.unit == "unknown" for spec in (*mapping.state, *mapping.action)):
        head.append("# Units marked unknown: fill in what you know (rad, m, ...).")
    plain = yaml.safe_dump(mapping.to_dict(), sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
    return "\n".join(head) + "\n" + plain


def build_parser() -> argparse.ArgumentParser:
    """The command line of `syvla-convert`."""
    parser = CommandParser(
        prog="syvla-convert",
        description="Convert robot demonstrations to a LeRobot v3.0 dataset. Run the same command again to go on with "
        "an interrupted conversion.",
        example="syvla-convert aloha-hdf5 recordings/ datasets/my_task --workers 4",
    )
    parser.add_argument("format", choices=list(FORMATS), help="format of the source")
    parser.add_argument("source", type=Path, help="folder or file of the source")
    parser.add_argument("output", type=Path, nargs="?", default=argparse.SUPPRESS, help="folder of the dataset")
    parser.add_argument("--mapping", type=Path, help="mapping file")
    parser.add_argument("--preset", help=f"mapping that comes with the package: {', '.join(presets())}")
    parser.add_argument("--write-mapping", type=Path, metavar="FILE", help="write the mapping to edit, and stop")
    parser.add_argument("--fps", type=int, help="frames per second, in place of the mapping's")
    parser.add_argument("--task", help="instruction of every episode, in place of the mapping's")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--limit", type=int, help="convert the first so many episodes only")
    parser.add_argument("--storage", choices=("video", "image"), help="mp4, or lossless PNG, in place of the mapping's")
    parser.add_argument("--video-codec", help="libsvtav1 or h264; the first that PyAV has")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if an episode was dropped")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.arrange(
        {
            "mapping": ["--mapping", "--preset", "--write-mapping", "--fps", "--task"],
            "dataset": ["--storage", "--video-codec", "--limit"],
            "run": ["--workers", "--strict", "--quiet"],
        }
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-convert`; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING if arguments.quiet else logging.INFO, format="%(message)s")
    try:
        return _run(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(error_text("syvla-convert", error), file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    source = open_source(arguments.format, arguments.source)
    chosen = {"mapping": arguments.mapping, "preset": arguments.preset}
    mapping = choose_mapping(source, **chosen, propose_unknown=arguments.write_mapping is not None)
    given: dict[str, Any] = {key: getattr(arguments, key) for key in ("fps", "storage") if getattr(arguments, key)}
    if arguments.task:
        given |= {"task": arguments.task, "task_source": None}
    mapping = ConversionMapping.from_dict({**replace(mapping, **given).to_dict()})
    if arguments.write_mapping is not None:
        if arguments.write_mapping.exists():
            raise FileExistsError(f"{arguments.write_mapping} exists; remove it, or name another file")
        write_text(arguments.write_mapping, mapping_text(mapping))
        print(f"written to {arguments.write_mapping}; edit it and pass it with --mapping")
        return 0
    if "output" not in arguments:
        raise SourceError("output: name the folder of the dataset")
    source = open_source(arguments.format, arguments.source, mapping.options)
    report = convert(
        source,
        arguments.output,
        mapping,
        workers=arguments.workers,
        limit=arguments.limit,
        video_codec=arguments.video_codec,
        progress=not arguments.quiet,
    )
    print(report.summary())
    if units := report.units():
        print(f'units for a recipe: "units": {units}')
    print(f"written to {arguments.output}; the report is {arguments.output / REPORT_PATHS[1]}")
    return 1 if arguments.strict and report.dropped else 0


if __name__ == "__main__":
    sys.exit(main())
