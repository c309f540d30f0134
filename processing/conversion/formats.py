"""The source formats by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .aloha_hdf5 import AlohaSource
from .rh20t import Rh20tSource
from .rlds import RldsSource
from .robomimic import RobomimicSource
from .source import Source, SourceError

FORMATS: dict[str, Callable[..., Source]] = {
    "aloha-hdf5": AlohaSource,
    "robomimic": RobomimicSource,
    "rlds": RldsSource,
    "rh20t": Rh20tSource,
}


def open_source(format: str, path: str | Path, options: Mapping[str, Any] | None = None) -> Source:
    """A source of a format.

    Args:
        format: A key of `FORMATS`.
        path: Folder or file.
        options: The mapping's `options`.

    Raises:
        FileNotFoundError: There is no such path.
        SourceError: Unknown format, or options that it does not have.
    """
    if format not in FORMATS:
        raise SourceError(f"format: expected one of {list(FORMATS)}, got {format!r}")
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such file or folder")
    try:
        return FORMATS[format](root, **dict(options or {}))
    except TypeError as error:
        raise SourceError(f"options: {sorted(options or {})} do not fit format {format!r} ({error})") from error
