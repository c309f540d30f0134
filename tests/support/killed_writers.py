"""Small programs that write files and are killed at each of their system calls in turn."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_FOLDER = Path(__file__).resolve().parents[2] / "syvla"
_CALLS = ("open", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "close")

_SCRIPT = """
import os, signal, sys, types
package = types.ModuleType("syvla")  # without the packages that need torch
package.__path__ = [{folder!r}]
sys.modules["syvla"] = package
from pathlib import Path
from syvla import durable_files, sealed_folders

count, last = 0, {last}
def counted(call):
    def wrapper(*args, **kwargs):
        global count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapper
folder = Path(sys.argv[1])
for name in {calls!r}:
    setattr(os, name, counted(getattr(os, name)))
{program}
"""


def script(program: str, last: int = 0) -> list[str]:
    """Command line of a program that may use `durable_files`, `sealed_folders` and `folder`, its first argument."""
    return [sys.executable, "-S", "-c", _SCRIPT.format(folder=str(_FOLDER), last=last, calls=_CALLS, program=program)]


def killed_at_each_call(program: str, folder: Path) -> Iterator[int]:
    """Runs the program until its first, second, ... system call, at which it dies; yields the number after each death.

    Ends when the program reaches its own end.
    """
    for last in range(1, 200):
        done = subprocess.run([*script(program, last), str(folder)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            assert last > 5, "the program made hardly any system call: is it still the one that is meant?"
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
        yield last
    raise AssertionError("the program never reaches its end")
