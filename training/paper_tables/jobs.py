"""Jobs of `syvla-tables`: commands that make a folder, and are not run again once their result is written."""

from __future__ import annotations

import importlib
import json
import logging
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syvla.durable_files import write_json
from syvla.training.processes.child_processes import environment
from syvla.training.run.recipe import shipped_path

logger = logging.getLogger(__name__)

COMMANDS = {
    "syvla.training.finetune": "syvla-finetune",
    "syvla.evaluation.closed_loop": "syvla-eval",
    "syvla.evaluation.vlm_benchmarks.evaluate_vlm": "syvla-eval-vlm",
    "syvla.evaluation.demonstration_recording": "syvla-record",
    "syvla.training.value_warmup": "syvla-value-warmup",
    "syvla.training.retrieval.encode_dataset": "syvla-encode",
    "syvla.training.rl_run": "syvla-rl",
}
"""Modules whose `main` has a console script."""


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        module: Whose `main(argv)` it runs.
        arguments: Its command line.
        output: Folder that it makes; the result is written beside it as `<output>.json` when all is done.
        summary: File in `output` whose JSON becomes part of the result.
        keeps_partial: Whether the command itself goes on where an interrupted one stopped. Otherwise a folder without
            result is removed, and the command starts anew.
        launcher: Words before the script's path, such as `accelerate launch ...`; a process of its own then runs it.
        separate: Whether to run in a process of its own in any case, which gives a GPU's memory back when it ends.
        makes_stale: Folders of what was made out of an earlier output, removed before it is made anew.
    """

    module: str
    arguments: tuple[str, ...]
    output: Path
    summary: str | None = None
    keeps_partial: bool = False
    launcher: tuple[str, ...] = ()
    separate: bool = False
    makes_stale: tuple[Path, ...] = ()

    @property
    def result_path(self) -> Path:
        return self.output.with_name(self.output.name + ".json")

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished job wrote, None before.

        Raises:
            ValueError: If it is the result of another command.
        """
        if not self.result_path.is_file():
            return None
        result: dict[str, Any] = json.loads(self.result_path.read_text(encoding="utf-8"))
        if result["arguments"] != list(self.arguments):
            changed = sorted(set(map(str, result["arguments"])) ^ set(self.arguments))
            raise ValueError(
                f"{self.result_path}: is the result of other settings (they differ in {', '.join(changed)}); remove it and "
                f"{self.output}, or name another --output"
            )
        return result

    def shell(self) -> str:
        """The command as a user would type it."""
        if self.launcher:
            words = self._launched()
        else:
            words = [COMMANDS[self.module]] if self.module in COMMANDS else ["python", "-m", self.module]
        return shlex.join([*words, *self.arguments])

    def run(self) -> dict[str, Any]:
        """Runs the command unless its result is there. Returns the result.

        Raises:
            RuntimeError: If the command fails.
        """
        if (done := self.result) is not None:
            return done
        if self.output.exists() and not self.keeps_partial:
            logger.info("%s is unfinished; starting it anew", self.output)
            shutil.rmtree(self.output)
        for folder in self.makes_stale:
            shutil.rmtree(folder, ignore_errors=True)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        logger.info("%s", self.shell())
        started = time.monotonic()
        status = self._execute()
        if status:
            raise RuntimeError(f"{self.shell()}: ended with exit status {status}; its messages stand above")
        result: dict[str, Any] = {
            "arguments": list(self.arguments),
            "seconds": round(time.monotonic() - started, 1),
        }
        if self.summary is not None:
            result["summary"] = json.loads((self.output / self.summary).read_text(encoding="utf-8"))
        write_json(self.result_path, result, allow_nan=True)
        return result

    def _execute(self) -> int:
        if self.launcher:
            command = [*self._launched(), *self.arguments]
        elif self.separate:
            command = [sys.executable, "-m", self.module, *self.arguments]
        if self.launcher or self.separate:
            return subprocess.run(command, check=False, env=environment()).returncode
        try:
            return int(importlib.import_module(self.module).main(list(self.arguments)) or 0)
        except SystemExit as error:  # how argparse refuses arguments
            return int(error.code or 0) if isinstance(error.code, int) else 1

    def _launched(self) -> list[str]:
        """Launcher and script, both found from any folder."""
        words = [*self.launcher, self.module.removeprefix("syvla.").replace(".", "/") + ".py"]
        return [str(shipped_path(word)) for word in words]


def option_words(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Options of a training script as words; what is no text is written as JSON."""
    words: list[str] = []
    for name, value in options.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *(v if isinstance(v, str) else json.dumps(v) for v in values)]
    return tuple(words)
