"""Dialects in which an evaluation asks other projects' servers: those of `serving/dialects`, and more that a server may want.

A YAML file may have these fields beside those of `syvla.serving.wire.dialects`:

| field | meaning |
|---|---|
| `leading_axes` | axes of length 1 that are put before those of images and state: 1 for a batch, 2 for batch and time |
| `prompt_axes` | lists around the instruction: 2 sends `[["lift the cube"]]` |
| `codec` | how arrays are written in msgpack, see `msgpack_codec`; `openpi` unless it says otherwise |
| `observation_key` | key under which a ZeroMQ server's endpoint takes the observation; else it is the argument itself |
| `actions` | parts of the action in order, each with its `key` in the reply and, if it is fixed, its `dim`; else `actions` |
| `reply_axes` | axes of length 1 before those of time and dimension in each part |
| `gripper` | `{dims: [6], from: [0, 1], to: [1, -1], binarize: true}`, see `GripperRule` |

`dialects/gr00t_libero.yaml` in this folder uses all of them. Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from syvla.serving.wire.dialect_files import dialect_from_fields, dialect_names, load_dialect, read_fields
from syvla.serving.wire.dialects import Dialect
from syvla.serving.wire.msgpack_codec import CODECS

FOLDER = Path(__file__).parent / "dialects"
Key = tuple[str, ...]


@dataclass(frozen=True)
class ActionPart:
    """A piece of the action: its key in the reply and its number of dimensions; None if that is open."""

    key: Key
    dim: int | None = None


@dataclass(frozen=True)
class GripperRule:
    """Values of some action dimensions, mapped linearly.

    Attributes:
        dims: Which dimensions.
        source: (low, high) as the server means them.
        target: What these two are in the environment.
        binarize: Whether everything above the middle becomes the second, and the rest the first.
    """

    dims: tuple[int, ...]
    source: tuple[float, float]
    target: tuple[float, float]
    binarize: bool = False

    def apply(self, actions: np.ndarray) -> np.ndarray:
        """Mapped actions (T, D).

        Raises:
            ValueError: If there is no such dimension.
        """
        if max(self.dims) >= actions.shape[1]:
            raise ValueError(
                f"gripper: dims: expected numbers below {actions.shape[1]}, the dimensions of the action, got {list(self.dims)}"
            )
        mapped, dims = actions.copy(), list(self.dims)
        share = (actions[:, dims] - self.source[0]) / (self.source[1] - self.source[0])
        if self.binarize:
            share = (share > 0.5).astype(actions.dtype)
        mapped[:, dims] = self.target[0] + share * (self.target[1] - self.target[0])
        return mapped


@dataclass(frozen=True)
class ClientDialect:
    """How observations are written for a server, and actions read from its reply. See the module for the fields.

    Attributes:
        observation: Keys of the observation.
        identity: Name, and for a file also its digest, since it may be edited.
    """

    observation: Dialect
    identity: str
    leading_axes: int = 0
    prompt_axes: int = 0
    codec: str = "openpi"
    observation_key: str | None = None
    actions: tuple[ActionPart, ...] = (ActionPart(("actions",)),)
    reply_axes: int = 0
    gripper: GripperRule | None = None
    _plain: bool = field(default=True, repr=False)

    @property
    def is_plain(self) -> bool:
        """Whether the file has only fields that `syvla-serve` understands as well."""
        return self._plain

    def with_observation(self, observation: Dialect) -> ClientDialect:
        """The same with other keys of the observation."""
        return replace(self, observation=observation)

    def to_request(self, views: Mapping[str, np.ndarray], state: np.ndarray, prompt: str) -> dict[str, Any]:
        """The observation as the server wants it; arguments and errors as `Dialect.to_request`."""
        shaped: dict[str, Any] = self._shaped(self.observation.to_request(views, state, prompt))
        return shaped

    def read_actions(self, reply: Any) -> np.ndarray:
        """Actions (T, D), float32, in the environment's units.

        Raises:
            ValueError: If the reply does not hold them; names the key, what was expected and what came.
        """
        parts = [self._part(part, reply) for part in self.actions]
        lengths = {len(part) for part in parts}
        if len(lengths) > 1:
            named = {".".join(part.key): len(found) for part, found in zip(self.actions, parts, strict=True)}
            raise ValueError(f"actions: expected parts of one length, got {named}")
        actions = np.concatenate(parts, axis=1).astype(np.float32)
        return actions if self.gripper is None else self.gripper.apply(actions)

    def _shaped(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._shaped(entry) for key, entry in value.items()}
        if isinstance(value, np.ndarray):
            return value[(None,) * self.leading_axes]
        for _ in range(self.prompt_axes):
            value = [value]
        return value

    def _part(self, part: ActionPart, reply: Any) -> np.ndarray:
        name, value = ".".join(part.key), reply
        for key in part.key:
            if not isinstance(value, Mapping) or key not in value:
                have = sorted(map(str, value))[:12] if isinstance(value, Mapping) else type(value).__name__
                raise ValueError(f"{name}: missing in the reply, which has {have}")
            value = value[key]
        array = np.asarray(value)
        for _ in range(self.reply_axes):
            if array.ndim < 2 or len(array) != 1:
                raise ValueError(
                    f"{name}: expected {self.reply_axes} leading axes of length 1, got shape {np.shape(value)}"
                )
            array = array[0]
        if array.ndim == 1 and part.dim == 1:
            array = array[:, None]
        wanted = "D" if part.dim is None else part.dim
        if array.ndim != 2 or not len(array) or array.dtype.kind not in "fiu" or part.dim not in (None, array.shape[1]):
            raise ValueError(f"{name}: expected numbers (T, {wanted}), got {np.shape(value)} {array.dtype}")
        return array


def client_dialect_names() -> list[str]:
    """Names of all dialects that come with the package."""
    return sorted([*dialect_names(), *(path.stem for path in FOLDER.glob("*.yaml"))])


def load_client_dialect(name_or_path: str) -> ClientDialect:
    """A dialect by name, or one from a YAML file.

    Raises:
        ValueError: No such dialect, or a file with missing, unknown or ill-formed fields.
    """
    if name_or_path in dialect_names():
        return ClientDialect(load_dialect(name_or_path), name_or_path)
    path = FOLDER / f"{name_or_path}.yaml" if name_or_path in client_dialect_names() else Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        names = ", ".join(client_dialect_names())
        raise ValueError(f"dialect: expected one of {names} or the path of a .yaml file, got {name_or_path!r}")
    fields = read_fields(path)
    ours = {key: fields.pop(key) for key in _READERS if key in fields}
    read = {}
    for key, value in ours.items():
        try:
            read[key] = _READERS[key](value)
        except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(f"{path}: {key}: {error}; got {value!r}") from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return ClientDialect(dialect_from_fields(path, fields), f"{path.stem} {digest}", _plain=not ours, **read)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 4:
        raise ValueError("expected a number from 0 to 4")
    return value


def _codec(value: Any) -> str:
    if value not in CODECS:
        raise ValueError(f"expected one of {', '.join(CODECS)}")
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("expected a key")
    return value


def _parts(value: Any) -> tuple[ActionPart, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("expected a list of {key: ..., dim: ...}")
    parts = []
    for entry in value:
        unknown = sorted(set(entry) - {"key", "dim"})
        if unknown:
            raise ValueError(f"unknown fields {unknown}; expected key and dim")
        key = entry["key"]
        parts.append(ActionPart((key,) if isinstance(key, str) else tuple(map(str, key)), entry.get("dim")))
    return tuple(parts)


def _gripper(value: Any) -> GripperRule:
    unknown = sorted(set(value) - {"dims", "from", "to", "binarize"})
    if unknown:
        raise ValueError(f"unknown fields {unknown}; expected dims, from, to, binarize")
    source, target = _pair(value["from"]), _pair(value["to"])
    dims = tuple(value["dims"])
    if not dims or not all(isinstance(dim, int) and dim >= 0 for dim in dims):
        raise ValueError("dims: expected numbers of action dimensions, from 0")
    if source[0] == source[1]:
        raise ValueError("from: expected two different values")
    return GripperRule(dims, source, target, bool(value.get("binarize", False)))


def _pair(value: Sequence[float]) -> tuple[float, float]:
    low, high = value
    return float(low), float(high)


_READERS: dict[str, Any] = {
    "leading_axes": _count,
    "prompt_axes": _count,
    "codec": _codec,
    "observation_key": _text,
    "actions": _parts,
    "reply_axes": _count,
    "gripper": _gripper,
}
