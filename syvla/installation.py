"""Says what to type where a library is missing. Standard library only: it runs before any other import of ours."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def install_command(extra: str) -> str:
    """What installs SyVLA with one of its extras for the running Python: from the checkout, where this is one."""
    checkout = Path(__file__).resolve().parents[1]
    what = f"-e '{checkout}[{extra}]'" if (checkout / "pyproject.toml").is_file() else f"'syvla[{extra}]'"
    return f"{sys.executable} -m pip install {what}"


def require_installed(extra: str, *modules: str) -> None:
    """Checks that modules can be found, without importing them.

    Raises:
        ModuleNotFoundError: If one is missing; the message names it and the command that installs the extra.
    """
    missing = [name for name in modules if name not in sys.modules and find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"SyVLA needs {', '.join(missing)}, which this Python does not have; type: {install_command(extra)}",
            name=missing[0],
        )
