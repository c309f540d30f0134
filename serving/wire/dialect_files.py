"""Dialects as YAML files: those of the package and a user's own. See `dialects` for the fields. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .dialects import Dialect, Key, StatePart

FOLDER = Path(__file__).parents[1] / "dialects"


def dialect_names() -> list[str]:
    """Names of the dialects that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_dialect(name_or_path: str | Path) -> Dialect:
    """A dialect of the package by name, or one from a YAML file.

    Raises:
        ValueError: No such dialect, or a file with missing, unknown or ill-formed fields.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{path}.yaml"
        if str(name_or_path) not in dialect_names():
            names = ", ".join(dialect_names())
            raise ValueError(f"dialect: expected one of {names} or the path of a .yaml file, got {str(name_or_path)!r}")
    return dialect_from_fields(path, read_fields(path))


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a YAML file.

    Raises:
        ValueError: If it cannot be read, or holds no map.
    """
    import yaml

    try:
        fields = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"dialect: cannot read {path}: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(
            f"{path}: not a dialect (expected a map, got {type(fields).__name__}); see dialects/lerobot.yaml"
        )
    return fields


def dialect_from_fields(path: Path, fields: dict[str, Any]) -> Dialect:
    """The dialect of a file's fields.

    Raises:
        ValueError: Missing, unknown or ill-formed fields.
    """
    try:
        return _from_fields(path.stem, fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a dialect ({type(error).__name__}: {error}); see dialects/lerobot.yaml"
        ) from None


def _from_fields(name: str, fields: dict[str, Any]) -> Dialect:
    known = {
        "description",
        "images",
        "camera_key",
        "optional",
        "ignored",
        "image_layout",
        "image_size",
        "state",
        "prompt",
        "sends",
        "replan_steps",
    }
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"dialect {name!r}: unknown fields {unknown}; expected {sorted(known)}")
    layouts = tuple(fields.get("image_layout", ["hwc"]))
    if not layouts or not set(layouts) <= {"hwc", "chw"}:
        raise ValueError(f"dialect {name!r}: image_layout: expected hwc and chw, got {list(layouts)}")
    replan = fields.get("replan_steps")
    if replan is not None and (isinstance(replan, bool) or not isinstance(replan, int) or replan < 1):
        raise ValueError(f"dialect {name!r}: replan_steps: expected a number from 1, got {replan!r}")
    sends = fields.get("sends")
    if sends is not None and (not sends or not set(sends) <= set(fields["images"])):
        raise ValueError(f"dialect {name!r}: sends: expected views out of {sorted(fields['images'])}, got {sends!r}")
    return Dialect(
        name=name,
        images={view: (_key(key),) for view, key in fields["images"].items()},
        state=tuple(StatePart(_key(part["key"]), part.get("dim")) for part in fields["state"]),
        prompt=tuple(_key(key) for key in fields["prompt"]),
        optional=frozenset(fields.get("optional", [])),
        ignored=frozenset(_key(key) for key in fields.get("ignored", [])),
        image_layout=layouts,
        image_size=fields.get("image_size"),
        camera_key=fields.get("camera_key"),
        sends=None if sends is None else tuple(sends),
        replan_steps=replan,
        description=fields.get("description", ""),
    )


def _key(value: str | list[str]) -> Key:
    return (value,) if isinstance(value, str) else tuple(value)
