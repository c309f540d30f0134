"""An environment without SyVLA, beside the libraries of the running Python or without them."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path


class BareEnvironment:
    """A virtual environment in which SyVLA is not installed, whatever the running Python has.

    Args:
        folder: Created.
        libraries: Whether it sees the running Python's site-packages: by a path file, so that the path files in there, an
            editable installation's among them, do not hold.
    """

    def __init__(self, folder: Path, libraries: bool = True) -> None:
        venv.EnvBuilder(symlinks=True).create(folder)
        self.folder = folder
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.bin / "python"
        scheme = {"base": str(folder), "platbase": str(folder)}
        self.site_packages = Path(sysconfig.get_path("purelib", "venv", scheme))
        if libraries:
            paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
            (self.site_packages / "libraries.pth").write_text("".join(f"{path}\n" for path in paths))

    def install(self, wheel: Path) -> None:
        """Installs a wheel and nothing that it needs.

        From the wheel's folder: a checkout in the working directory holds the metadata of its own installation, which
        pip takes for the wheel's and then installs nothing.
        """
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "-q",
            "--disable-pip-version-check",
        ]
        words = ["--no-deps", "--no-index", "--ignore-installed", str(wheel.resolve())]
        subprocess.run([*pip, *words], check=True, cwd=wheel.resolve().parent)

    def run(
        self, *command: str | Path, cwd: Path, path: Sequence[str | Path] = (), fails: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; `python` and console scripts are the environment's.

        Args:
            command: Its words.
            cwd: Working directory.
            path: PYTHONPATH.
            fails: Whether it has to fail; otherwise it has to succeed.
        """
        own = self.bin / command[0]
        words = [str(own if own.exists() else command[0]), *map(str, command[1:])]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"PATH": os.pathsep.join([str(self.bin), os.environ["PATH"]])}
        if path:
            environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
        result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert (result.returncode != 0) == fails, f"{words}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
        return result
