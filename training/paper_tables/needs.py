"""What can be missing for a table, found before the first step of its training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from syvla.evaluation.vlm_benchmarks.benchmarks import BENCHMARKS
from syvla.evaluation.vlm_benchmarks.local_datasets import parquet_files

LIBERO_EMBODIMENT = "libero"
"""The robot that the environment `libero` asks a checkpoint for."""


def missing_files(options: Mapping[str, Sequence[str | None]]) -> list[str]:
    """A sentence for every value of an option that is a path of this machine and is not there.

    Args:
        options: Values by option: paths, Hub ids, or JSON objects with a `path`.
    """
    missing = []
    for option, values in options.items():
        for value in values:
            path = None if value is None else _path(value)
            if path is not None and not Path(path).expanduser().exists():
                missing.append(f"{option}: {path} does not exist; it is neither here nor a Hub id")
    return missing


def libero_needs(datasets: Sequence[str]) -> list[str]:
    """What is missing to train on LIBERO's demonstrations and to be measured in LIBERO."""
    missing = []
    for value in datasets:
        embodiment = _fields(value).get("embodiment")
        if embodiment != LIBERO_EMBODIMENT:
            missing.append(
                f"--libero-datasets: expected embodiment {LIBERO_EMBODIMENT!r}, which the environment asks for, got "
                f'{embodiment!r}; pass \'{{"path": "...", "embodiment": "{LIBERO_EMBODIMENT}", "cameras": {{...}}}}\''
            )
    if find_spec("libero") is None or find_spec("robosuite") is None:
        missing.append("the packages hf-libero and robosuite: scripts/install_test_peers.sh installs them")
        return missing
    from syvla.evaluation.environments.libero.tasks import find_assets

    try:
        find_assets(None)
    except FileNotFoundError as error:
        missing.append(f"LIBERO's assets: {error}")
    return missing


def benchmark_needs(data_root: str | None) -> list[str]:
    """Which benchmarks are missing or damaged in the folder; the Hub is not asked."""
    missing = []
    for benchmark in BENCHMARKS.values() if data_root is not None else ():
        try:
            parquet_files(benchmark, Path(str(data_root)))
        except (OSError, ValueError) as error:
            missing.append(f"--data-root: {error}")
    return missing


def _fields(value: str) -> dict[str, Any]:
    try:
        fields = json.loads(value)
    except ValueError:
        return {"path": value}
    return fields if isinstance(fields, dict) else {"path": value}


def _path(value: str) -> str | None:
    """The path that a value names, None for a Hub id: two names with a slash between."""
    path = str(_fields(value).get("path", value))
    names = path.split("/")
    looks_like_an_id = len(names) == 2 and all(names) and not path.startswith((".", "~"))
    return None if looks_like_an_id and not Path(path).suffix else path
