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
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from syvla.sealed_folders import folder_problems, publish_folder, remove_folder, seal_folder, undo_replacement

from .finite_steps import require_finite_weights
from .run_settings import require_same_settings, save_settings, settings_of, step_of, used_folder_problem

logger = logging.getLogger(__name__)

Gather = Callable[[list[Any]], list[Any]]

SEAL_FILE = "checkpoint_files.json"
"""List of a checkpoint's files with their sizes in bytes, written last."""

UNFINISHED_FOLDER = "_unfinished"
"""Folder in the output folder in which checkpoints are written. Its name keeps it out of uploads."""


RESUME_HELP = (
    "auto: continue the newest whole checkpoint of output_dir, or start where there is none; last: the same, but an error "
    "where there is none; a folder: continue that one; none: start anew."
)
"""Help of `resume_from_checkpoint` in every command that trains."""


def seal(folder: str | Path, stage: str | None = None) -> None:
    """Write a checkpoint's list of files, after all of them have reached the disk.

    Args:
        folder: The checkpoint.
        stage: Which kind of run can continue it, see `AtomicCheckpointMixin.stage`; None: not known.
    """
    # Sizes alone: hashing the optimizer of a 3B model would hold up every process for half a minute.
    seal_folder(Path(folder), SEAL_FILE, None if stage is None else {"stage": stage}, hashes=False)


def problems_of(folder: str | Path, stage: str | None = None) -> list[str]:
    """Why a run cannot continue a checkpoint; empty if it can.

    Args:
        folder: The checkpoint.
        stage: Stage of the run; None: any.
    """
    folder = Path(folder)
    if problems := folder_problems(folder, SEAL_FILE):
        return problems
    found = json.loads((folder / SEAL_FILE).read_text(encoding="utf-8")).get("stage")
    if None not in (stage, found) and stage != found:
        return [f"it belongs to another stage of training: {found}, this run is {stage}"]
    return []


def checkpoints_of(output_dir: str | Path) -> list[Path]:
    """Folders `checkpoint-N` of a run by their step, earliest first, whole or not."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(output_dir).glob("checkpoint-*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match and path.is_dir())]


def last_whole_checkpoint(output_dir: str | Path, stage: str | None = None, gather: Gather = list) -> Path | None:
    """The newest checkpoint that is whole for all processes; each newer one that is not is named in a warning.

    Args:
        output_dir: Folder of the run.
        stage: See `problems_of`.
        gather: Concatenates the lists of all processes.
    """
    undo_replacement(Path(output_dir) / UNFINISHED_FOLDER, Path(output_dir))
    newest_first = checkpoints_of(output_dir)[::-1]
    problems = {path.name: problems_of(path, stage) for path in newest_first}
    whole = gather([[name for name, found in problems.items() if not found]])
    for path in newest_first:
        if all(path.name in names for names in whole):
            return path
        text = "; ".join(problems[path.name][:5]) or "it is not whole for every process"
        logger.warning("%s is no whole checkpoint and is passed over: %s", path, text)
    return None


def find_checkpoint(
    choice: str | bool | Path | None, output_dir: str | Path, stage: str | None = None, gather: Gather = list
) -> Path | None:
    """The checkpoint that a run continues; the same for all processes.

    Args:
        choice: A folder; "last" or True: the newest whole one of `output_dir`; "auto": the same, or none where there is
            none, so that one command both starts a run and continues it; None, False, "none" or "": none.
        output_dir: Folder of the run.
        stage, gather: See `last_whole_checkpoint`.

    Raises:
        ValueError: If the chosen folder is no whole checkpoint of this stage, or there is no newest one.
    """
    text = str(choice) if choice else ""
    if text.lower() in ("", "false", "none"):
        return None
    if text.lower() in ("true", "last", "auto"):
        found = last_whole_checkpoint(output_dir, stage, gather)
        if found is None and text.lower() != "auto":
            raise ValueError(
                f"resume_from_checkpoint: {output_dir} holds no whole checkpoint; start the run without it"
            )
        return found
    if problems := [problem for found in gather([problems_of(text, stage)]) for problem in found]:
        raise ValueError(
            f"resume_from_checkpoint: {text} is no whole checkpoint: {'; '.join(problems[:5])}; resume from another one. "
            "If it is whole but was written by another program, seal it: python -m syvla.training.run.checkpoints --seal FOLDER"
        )
    return Path(text)


def publish(unfinished: str | Path, final: str | Path, stage: str | None = None) -> None:
    """Seal a written checkpoint and move it to its place, where an earlier one of the same step gives way."""
    unfinished, final = Path(unfinished), Path(final)
    seal(unfinished, stage)
    publish_folder(unfinished, final)
    shutil.rmtree(unfinished.parent, ignore_errors=True)


def rotate(output_dir: str | Path, limit: int | None, best: str | None) -> None:
    """Delete the earliest whole checkpoints beyond `limit`; the latest and the best one stay.

    One that is not whole is passed over by a resumed run, so it neither counts nor displaces a whole one. A checkpoint is
    moved aside before its files are deleted, so that a kill leaves no half of one behind.
    """
    if not limit or limit < 1:
        return
    found = [path for path in checkpoints_of(output_dir) if not problems_of(path)]
    if not found:
        return
    kept = {found[-1]} | {path for path in found if best is not None and path.resolve() == Path(best).resolve()}
    surplus = len(found) - max(limit, len(kept))
    aside = Path(output_dir) / UNFINISHED_FOLDER
    for path in [path for path in found if path not in kept][: max(surplus, 0)]:
        remove_folder(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


class AtomicCheckpointMixin:
    """For a [`Trainer`]: checkpoints appear under their name only when they are whole, and only such ones are continued.

    A trainer writes a checkpoint's files into `_get_output_dir()/checkpoint-N`; while it does, that folder is the one of
    unfinished checkpoints.

    Attributes:
        stage: Kind of run, noted in its checkpoints; a run of another kind does not continue them.
    """

    stage: str
    _unfinished: Path | None = None
    _output_claimed = False

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A continued run, or the best model at the end, must not keep other weights than its checkpoint has.

        Raises:
            ValueError: If weights are missing or unknown, where [`Trainer`] only warns.
        """
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())  # type: ignore[attr-defined]
        kinds = {
            "missing from the checkpoint": set(load_result.missing_keys) - tied,
            "unknown to the model": set(load_result.unexpected_keys),
        }
        problems = [f"{len(names)} weights {what}, such as {min(names)}" for what, names in kinds.items() if names]
        if problems:
            raise ValueError(
                f"the checkpoint does not fit the model: {'; '.join(problems)}; resume from one of this model"
            )

    def train(self, resume_from_checkpoint: str | bool | Path | None = None, *args: Any, **kwargs: Any) -> Any:
        """As [`Trainer.train`]; see `find_checkpoint` for what `resume_from_checkpoint` may be."""
        output: str = self.args.output_dir  # type: ignore[attr-defined]
        found = find_checkpoint(resume_from_checkpoint, output, self.stage, gather_object)
        if not self._output_claimed:
            self._claim_output(found, str(resume_from_checkpoint or "none").lower())
            self._output_claimed = True
        if found is not None:
            require_same_settings(found, self.run_settings())
            logger.info("continuing %s", found)
        self.prepare_to_continue(found)
        return super().train(None if found is None else str(found), *args, **kwargs)  # type: ignore[misc]

    def run_settings(self) -> dict[str, dict[str, Any]]:
        """What every checkpoint notes about its run, see `run_settings.settings_of`."""
        return settings_of(self.args, {})  # type: ignore[attr-defined]

    def _claim_output(self, resumed: Path | None, choice: str) -> None:
        """Makes sure that the run does not mix with another one in its folder.

        Raises:
            ValueError: If it would, and `overwrite_output_dir` is not set.
        """
        trainer: Any = self
        args, accelerator = trainer.args, trainer.accelerator
        found = checkpoints_of(args.output_dir)
        if choice in ("auto", "last", "true"):  # the newest whole one is continued; what is broken is replaced
            found = [path for path in found if not problems_of(path)]
        problem = used_folder_problem(args.output_dir, found, resumed)
        if choice == "auto" and resumed is None and not found:
            problem = None  # a finished run without checkpoints is run again by the command that ran it
        overwrite = getattr(args, "overwrite_output_dir", False)
        problems = [text for text in gather_object([problem]) if text]
        if problems and not overwrite:
            raise ValueError(f"output_dir: {problems[0]}")
        if problems and args.should_save:
            inside = resumed is not None and resumed.resolve().parent == Path(args.output_dir).resolve()
            for path in found:
                if not inside or (resumed is not None and step_of(path) > step_of(resumed)):
                    logger.warning("overwrite_output_dir: deleting %s", path)
                    remove_folder(path, Path(args.output_dir) / UNFINISHED_FOLDER)
        accelerator.wait_for_everyone()

    def prepare_to_continue(self, checkpoint: Path | None) -> None:
        """Called before training with the checkpoint that is continued, None at the start of a run. Does nothing here."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As [`Trainer.save_model`].

        Raises:
            NonFiniteError: If weights are not finite; nothing is written then, and earlier checkpoints stay.
        """
        trainer: Any = self
        require_finite_weights(trainer.model, gather_object)
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]

    def _get_output_dir(self, trial: Any) -> str:
        run: str = super()._get_output_dir(trial)  # type: ignore[misc]
        return run if self._unfinished is None else str(self._unfinished)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        args, accelerator = trainer.args, trainer.accelerator
        run = Path(trainer._get_output_dir(trial))
        final = run / f"checkpoint-{trainer.state.global_step}"
        if args.should_save:
            undo_replacement(run / UNFINISHED_FOLDER, run)
            shutil.rmtree(run / UNFINISHED_FOLDER, ignore_errors=True)
        accelerator.wait_for_everyone()
        self._unfinished = run / UNFINISHED_FOLDER
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            unfinished, self._unfinished = self._unfinished / final.name, None
        if args.should_save:
            self._name_best_checkpoint(run, unfinished)
            save_settings(unfinished, self.run_settings())
        accelerator.wait_for_everyone()
        if args.should_save:
            publish(unfinished, final, self.stage)
        accelerator.wait_for_everyone()
        if accelerator.is_local_main_process and unfinished.is_dir():  # a node with a disk of its own
            publish(unfinished, final, self.stage)
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
