"""What a script of this folder needs before it can run by its path: the package of its own checkout, and its libraries.

`python training/finetune.py` and `accelerate launch training/finetune.py` put this folder first on the module path, not the
checkout, so `syvla` is what is installed, or whatever else has that name. Standard library only.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

_NEEDED = ("torch", "transformers", "wrapt", "accelerate", "pandas", "pyarrow")


def require_package(script: str) -> None:
    """Ends the process with one sentence if `syvla` is missing, hidden, or another one than the script's.

    Args:
        script: `__file__` of the script that was started by its path.

    Raises:
        SystemExit: With what is wrong and what to type.
    """
    # The names in this folder are not for libraries to find.
    sys.path[:] = [entry for entry in sys.path if not _same(entry, Path(script).parent)]
    fault = _fault(Path(script).resolve())
    if fault:
        sys.exit(f"{script}: {fault}")


def _fault(script: Path) -> str | None:
    root = script.parents[1]
    install = f"{sys.executable} -m pip install -e '{root}[train]'"
    spec = find_spec("syvla")
    if spec is None:
        return f"SyVLA is not installed for this Python; type: {install}"
    found = Path(spec.origin) if spec.origin else Path(*list(spec.submodule_search_locations or ())[:1])
    found = found.resolve()
    if found not in (root / "syvla" / "__init__.py", root / "__init__.py"):
        if not (found.parent / "durable_files.py").is_file():
            return (
                f"`syvla` is {found} here, which hides the package of that name; rename it, or leave its folder out of "
                "PYTHONPATH"
            )
        return (
            f"the installed SyVLA is {found.parent} and not this checkout; type: {install} (or start the installed one with: "
            f"{sys.executable} -m syvla.training.{script.stem})"
        )
    missing = [name for name in _NEEDED if find_spec(name) is None]
    return f"{', '.join(missing)} cannot be imported; type: {install}" if missing else None


def _same(entry: str, folder: Path) -> bool:
    return Path(entry or ".").resolve() == folder.resolve()
