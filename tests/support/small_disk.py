"""A file system that is soon full, so that a test meets the operating system's own error."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mounts a file system in memory at `folder`; skips the test where that is not allowed.

    Args:
        folder: Is made.
        size: As tmpfs takes it, such as 64k.
    """
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Writes a file until nothing more fits; returns it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for block in (4096, 256, 1):
            try:
                while True:
                    file.write(bytes(block))
            except OSError:
                continue
    return ballast
