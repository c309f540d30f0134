"""Jobs of `syvla-tables`: commands that make a folder, and are not run again once their result is written."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

COMMANDS = {
    "training.finetune": "syvla-finetune",
    "evaluation.closed_loop": "syvla-eval",
    "evaluation.vlm_benchmarks.evaluate_vlm": "syvla-eval-vlm",
    "evaluation.record_demonstrations": "syvla-record",
    "serving.serve_command": "syvla-serve",
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
    """

    module: str
    arguments: tuple[str, ...]
    output: Path
    summary: str | None = None
    keeps_partial: bool = False
    launcher: tuple[str, ...] = ()
    separate: bool = False

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
        result = json.loads(self.result_path.read_text(encoding="utf-8"))
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
            words = [*self.launcher, self.module.replace(".", "/") + ".py"]
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
        write_json(self.result_path, result)
        return result

    def _execute(self) -> int:
        if self.launcher:
            script = Path(__file__).parents[1] / (self.module.replace(".", "/") + ".py")
            return subprocess.run([*self.launcher, str(script), *self.arguments], check=False).returncode
        if self.separate:
            return subprocess.run([sys.executable, "-m", self.module, *self.arguments], check=False).returncode
        try:
            return int(importlib.import_module(self.module).main(list(self.arguments)) or 0)
        except SystemExit as error:  # how argparse refuses arguments
            return int(error.code or 0) if isinstance(error.code, int) else 1


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
