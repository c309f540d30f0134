"""Commands of the project that die by SIGKILL at a chosen moment: a test that watches from outside may look too late."""

from __future__ import annotations

import sys

_SCRIPT = """
import importlib, os, signal, sys

place, _, name = {function!r}.partition(":")
owner = importlib.import_module(place)
*parts, name = name.split(".")
for part in parts:
    owner = getattr(owner, part)
original = getattr(owner, name)


def trap(*args, **kwargs):
    if {condition}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)


setattr(owner, name, trap)
sys.exit(importlib.import_module({module!r}).main(sys.argv[1:]))
"""


def killed_at(module: str, function: str, condition: str) -> list[str]:
    """The beginning of a command line that runs a module's `main` until it is killed.

    Args:
        module: As after `python -m`.
        function: `package.module:name` or `package.module:Class.name`; its call is the moment, before anything of it runs.
        condition: Python over the call's `args` and `kwargs`.
    """
    return [sys.executable, "-c", script_killed_at(module, function, condition)]


def script_killed_at(module: str, function: str, condition: str) -> str:
    """The same as the text of a script, for launchers that start a file; `condition` may also ask for `os.environ["RANK"]`."""
    return _SCRIPT.format(module=module, function=function, condition=condition)
