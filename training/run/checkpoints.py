"""Training checkpoints that are whole or not there.

A checkpoint is written into a folder of its own, sealed with a list of its files and their sizes, and then renamed: a kill at
any moment leaves earlier checkpoints as they are. One that was cut short afterwards, say by an interrupted copy, does not match
its list and is refused by name.

    python -m syvla.training.run.checkpoints outputs/run/checkpoint-2000    # check one; --seal one that another program wrote
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SEAL_FILE = "checkpoint_files.json"
"""List of a checkpoint's files with their sizes in bytes, written last."""

UNFINISHED_FOLDER = "_unfinished"
"""Folder in the output folder in which checkpoints are written. Its name keeps it out of uploads."""


def seal(folder: str | Path) -> None:
    """Write a checkpoint's list of files, after all of them have reached the disk."""
    folder = Path(folder)
    (folder / SEAL_FILE).unlink(missing_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _flush(path)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    part = folder / f"{SEAL_FILE}.part"
    part.write_text(json.dumps({"files": sizes}, indent=1) + "\n", encoding="utf-8")
    _flush(part)
    part.rename(folder / SEAL_FILE)


def problems_of(folder: str | Path) -> list[str]:
    """What a checkpoint lacks; empty if it is whole."""
    folder = Path(folder)
    if not folder.is_dir():
        return ["there is no such folder"]
    if not (folder / SEAL_FILE).is_file():
        return [f"{SEAL_FILE} is missing, which is written last: saving was interrupted, or another program wrote it"]
    try:
        sizes = json.loads((folder / SEAL_FILE).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{SEAL_FILE} cannot be read ({error})"]
    problems = []
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            problems.append(f"{name}: {'missing' if found is None else f'{found} bytes'}, expected {size} bytes")
    return problems


def require_whole(folder: str | Path) -> None:
    """Raises:
    ValueError: If a checkpoint is not whole; names it and what it lacks.
    """
    if problems := problems_of(folder):
        raise ValueError(
            f"resume_from_checkpoint: {folder} is no whole checkpoint: {'; '.join(problems[:5])}; resume from another one. "
            "If it is whole but was written by another program, seal it: python -m syvla.training.run.checkpoints --seal FOLDER"
        )


def checkpoints_of(output_dir: str | Path) -> list[Path]:
    """Folders `checkpoint-N` of a run by their step, earliest first, whole or not."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(output_dir).glob("checkpoint-*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match and path.is_dir())]


def last_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The latest checkpoint that is whole; a later one that is not is passed over with a warning."""
    for path in reversed(checkpoints_of(output_dir)):
        problems = problems_of(path)
        if not problems:
            return path
        logger.warning("%s is no whole checkpoint and is passed over: %s", path, "; ".join(problems[:5]))
    return None


def find_checkpoint(choice: str | bool | Path | None, output_dir: str | Path) -> str | None:
    """The checkpoint to resume from.

    Args:
        choice: A folder; "last" or True: the latest whole one of `output_dir`; "auto": the same, or none where there is
            none, so that one command both starts a run and continues it; None, False or "": none.
        output_dir: Folder of the run.

    Raises:
        ValueError: If the chosen folder is no whole checkpoint, or there is no latest one.
    """
    text = str(choice) if choice else ""
    if text.lower() in ("", "false", "none"):
        return None
    if text.lower() in ("true", "last", "auto"):
        found = last_whole_checkpoint(output_dir)
        if found is None and text.lower() != "auto":
            raise ValueError(
                f"resume_from_checkpoint: {output_dir} holds no whole checkpoint; start the run without it"
            )
        return None if found is None else str(found)
    require_whole(text)
    return text


def publish(unfinished: str | Path, final: str | Path) -> None:
    """Seal a written checkpoint and move it to its place, where an earlier one of the same step gives way."""
    unfinished, final = Path(unfinished), Path(final)
    seal(unfinished)
    if final.exists():
        old = unfinished.with_name(f"replaced-{final.name}")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    unfinished.rename(final)
    _flush(final.parent)
    shutil.rmtree(unfinished.parent, ignore_errors=True)


def rotate(output_dir: str | Path, limit: int | None, best: str | None) -> None:
    """Delete the earliest checkpoints beyond `limit`; the latest and the best one stay.

    A checkpoint is moved aside before its files are deleted, so that a kill leaves no half of one behind.
    """
    if not limit or limit < 1:
        return
    found = checkpoints_of(output_dir)
    kept = {found[-1]} | {path for path in found if best is not None and path.resolve() == Path(best).resolve()}
    surplus = len(found) - max(limit, len(kept))
    aside = Path(output_dir) / UNFINISHED_FOLDER
    for path in [path for path in found if path not in kept][: max(surplus, 0)]:
        aside.mkdir(exist_ok=True)
        path.rename(aside / f"deleted-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)


class AtomicCheckpointMixin:
    """For a [`Trainer`]: checkpoints appear under their name only when they are whole.

    A trainer writes a checkpoint's files into `_get_output_dir()/checkpoint-N`; while it does, that folder is the one of
    unfinished checkpoints.
    """

    _unfinished: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        run: str = super()._get_output_dir(trial)  # type: ignore[misc]
        return run if self._unfinished is None else str(self._unfinished)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        args, accelerator = trainer.args, trainer.accelerator
        run = Path(trainer._get_output_dir(trial))
        final = run / f"checkpoint-{trainer.state.global_step}"
        if args.should_save:
            shutil.rmtree(run / UNFINISHED_FOLDER, ignore_errors=True)
        accelerator.wait_for_everyone()
        self._unfinished = run / UNFINISHED_FOLDER
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            unfinished, self._unfinished = self._unfinished / final.name, None
        if args.should_save:
            self._name_best_checkpoint(run, unfinished)
        accelerator.wait_for_everyone()
        if args.should_save:
            publish(unfinished, final)
        accelerator.wait_for_everyone()
        if accelerator.is_local_main_process and unfinished.is_dir():  # a node with a disk of its own
            publish(unfinished, final)
        accelerator.wait_for_everyone()
        if args.push_to_hub:
            trainer._push_from_checkpoint(str(final))
        if args.should_save:
            rotate(run, args.save_total_limit, trainer.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._unfinished is None:  # else once it is whole and in its place
            self._push_whole_checkpoint(checkpoint_folder)

    def _push_whole_checkpoint(self, checkpoint_folder: str) -> None:
        super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]

    def _name_best_checkpoint(self, run: Path, unfinished: Path) -> None:
        """The saved state names the best checkpoint by the place where it will be."""
        state = self.state  # type: ignore[attr-defined]
        if step := state.best_global_step:
            best = run / f"checkpoint-{step}"
            if best.is_dir() or best.name == unfinished.name:
                state.best_model_checkpoint = str(best)
                state.save_to_json(str(unfinished / "trainer_state.json"))


def _flush(path: Path) -> None:
    """Have a file, or a folder's list of names, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot do it for folders
        logger.debug("%s: cannot be flushed", path)
    finally:
        os.close(descriptor)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m syvla.training.run.checkpoints`. Returns the exit status: 0 if the checkpoint is whole."""
    parser = argparse.ArgumentParser(
        prog="python -m syvla.training.run.checkpoints", description="Check a training checkpoint."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seal", action="store_true", help="take its present files for all of them")
    arguments = parser.parse_args(argv)
    if arguments.seal and arguments.folder.is_dir():
        seal(arguments.folder)
    problems = problems_of(arguments.folder)
    print(json.dumps({"checkpoint": str(arguments.folder), "whole": not problems, "problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
