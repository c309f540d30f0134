"""The mapping file: which source key becomes which dimension of state and action, and which camera, in which convention.

YAML that a person can edit; `syvla-convert --write-mapping` writes a first one. What it does not say is not guessed:
`fps: null` or `unit: unknown` stay what they are until someone who knows the robot fills them in.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

MAPPINGS = Path(__file__).parent / "mappings"
FLIPS = ("none", "vertical", "horizontal", "both")
CHANNELS = ("rgb", "bgr")
CHANGE_NAMES = ("next_value", "next_difference", "next_angle_difference", "closing_events", "binarized")
CLOCK_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
STORAGES = ("video", "image")
UNKNOWN = "unknown"
_MAX_BYTES = 2**20


class MappingError(ValueError):
    """A mapping that cannot be used; every problem is listed with its key."""


@dataclass(frozen=True)
class VectorSpec:
    """Dimensions `start` to `end` of a source key; value = clip(change(source) * scale + offset).

    Attributes:
        source: Key of the source.
        start, end: Dimensions of it, `end` exclusive.
        names: One per dimension.
        unit: Of each dimension after scaling, such as "rad" or "m"; `unknown` where nobody said so.
        scale, offset: To the unit, and for the sign.
        clip: Lowest and highest value, or None.
        change: One of `CHANGE_NAMES`, or None; see `dimensions`.
        note: What the recorder meant; for readers only.
    """

    source: str
    start: int
    end: int
    names: tuple[str, ...]
    unit: str = UNKNOWN
    scale: float = 1.0
    offset: float = 0.0
    clip: tuple[float, float] | None = None
    change: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class CameraSpec:
    """A camera: its source key, how its frames are turned upright, the order of the channels, a new size (H, W) or None."""

    source: str
    flip: str = "none"
    channels: str = "rgb"
    resize: tuple[int, int] | None = None
    note: str | None = None


@dataclass(frozen=True)
class Clock:
    """The source key of the frames' recording times, and their unit."""

    source: str
    unit: str = "s"


@dataclass(frozen=True)
class ConversionMapping:
    """Everything that a conversion has to know beside the files.

    Attributes:
        format: Source format.
        fps: Frames per second, an integer; None where the files do not say and nobody has.
        task: The instruction, or None with `task_source`.
        task_source: Text of the source that is the instruction.
        state, action: What they are put together from.
        cameras: LeRobot feature to camera.
        robot_type: For `info.json`.
        clock: Recording times to check against `fps`; None: the files have none.
        skip_first, skip_last: Frames of every episode that hold no valid action.
        trim: So many frames may one stream be longer than another; the surplus is cut off and counted.
        storage: "video" or "image" (lossless PNG).
        options: Of the format alone.
        note: For readers only.
    """

    format: str
    fps: int | None
    state: tuple[VectorSpec, ...]
    action: tuple[VectorSpec, ...]
    cameras: dict[str, CameraSpec]
    task: str | None = None
    task_source: str | None = None
    robot_type: str | None = None
    clock: Clock | None = None
    skip_first: int = 0
    skip_last: int = 0
    trim: int = 0
    storage: str = "video"
    options: dict[str, Any] = field(default_factory=dict)
    note: str | None = None

    @classmethod
    def from_dict(cls, values: Any, where: str = "mapping") -> ConversionMapping:
        """Reads and checks a mapping.

        Raises:
            MappingError: Unknown keys, wrong types or values; lists them all.
        """
        reader = _Reader()
        found = reader.mapping(values)
        if reader.problems or found is None:
            raise MappingError(f"{where}: " + "\n- ".join(["cannot be used", *reader.problems]))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values without what is at its default, in the order that a person reads them in."""
        plain: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("state", "action"):
                value = [_short(spec) for spec in value]
            elif item.name == "cameras":
                value = {name: _short(camera) for name, camera in value.items()}
            elif item.name == "clock" and value is not None:
                value = asdict(value)
            if item.name in ("format", "fps", "state", "action", "cameras") or value not in (None, 0, {}, "video"):
                plain[item.name] = value
        return plain

    def open_questions(self) -> list[str]:
        """What must be answered before converting."""
        questions = []
        if self.fps is None:
            questions.append("fps: the files do not say how many frames a second has; set it (or pass --fps)")
        if self.task is None and self.task_source is None:
            questions.append("task: the files have no instruction; set task (or pass --task)")
        return questions


def load_mapping(path: Path) -> ConversionMapping:
    """Reads a YAML mapping file.

    Raises:
        MappingError: It cannot be used.
        OSError: It cannot be read.
    """
    import yaml

    if path.stat().st_size > _MAX_BYTES:
        raise MappingError(f"{path}: {path.stat().st_size} bytes, expected at most {_MAX_BYTES}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MappingError(f"{path}: no valid YAML ({error})") from error
    return ConversionMapping.from_dict(values, str(path))


def presets() -> list[str]:
    """Names of the mappings that come with the package."""
    return sorted(path.stem for path in MAPPINGS.glob("*.yaml"))


def load_preset(name: str) -> ConversionMapping:
    """A mapping that comes with the package, MappingError if there is no such."""
    if name not in presets():
        raise MappingError(f"preset: there is no {name!r}; choose from {presets()}")
    return load_mapping(MAPPINGS / f"{name}.yaml")


def _short(spec: VectorSpec | CameraSpec) -> dict[str, Any]:
    defaults = {item.name: item.default for item in fields(spec)}
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(spec).items()}
    always = ("source", "start", "end", "names", "unit")
    return {name: value for name, value in values.items() if name in always or value != defaults[name]}


class _Reader:
    """Checks plain values and collects every problem."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def mapping(self, values: Any) -> ConversionMapping | None:
        if not self._keys("mapping", values, ConversionMapping):
            return None
        for name in ("format", "state", "action", "cameras"):
            if not values.get(name):
                self.problems.append(f"{name}: is missing")
        self._integer("fps", values.get("fps"), 1, 10_000, or_none=True)
        for name in ("skip_first", "skip_last", "trim"):
            self._integer(name, values.get(name, 0), 0, 10_000)
        for name in ("format", "task", "task_source", "robot_type", "note"):
            self._text(name, values.get(name), or_none=True)
        self._choice("storage", values.get("storage", "video"), STORAGES)
        if values.get("task") is not None and values.get("task_source") is not None:
            self.problems.append("task and task_source: give one of them")
        vectors = {kind: self._vectors(kind, values.get(kind)) for kind in ("state", "action")}
        cameras = self._cameras(values.get("cameras"))
        clock = self._clock(values.get("clock"))
        options = values.get("options") or {}
        if not isinstance(options, dict):
            self.problems.append(f"options: expected a mapping, got {options!r:.80}")
        if self.problems:
            return None
        checked = {"fps": None, **values, **vectors, "cameras": cameras, "clock": clock, "options": options}
        return ConversionMapping(**checked)

    def _vectors(self, kind: str, values: Any) -> tuple[VectorSpec, ...]:
        if not isinstance(values, list):
            self.problems.append(f"{kind}: expected a list of parts, got {values!r:.80}")
            return ()
        parts = [self._vector(f"{kind}[{position}]", entry) for position, entry in enumerate(values)]
        names = [name for part in parts if part for name in part.names]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            self.problems.append(f"{kind}: names {twice} stand for several dimensions; give each its own")
        return tuple(part for part in parts if part)

    def _vector(self, where: str, entry: Any) -> VectorSpec | None:
        before = len(self.problems)
        if not self._keys(where, entry, VectorSpec):
            return None
        self._text(f"{where}.source", entry.get("source"))
        self._integer(f"{where}.start", entry.get("start", 0), 0, 100_000)
        self._integer(f"{where}.end", entry.get("end"), 1, 100_000)
        self._text(f"{where}.unit", entry.get("unit", UNKNOWN))
        for name in ("scale", "offset"):
            self._number(f"{where}.{name}", entry.get(name, 1.0))
        if entry.get("scale", 1.0) == 0:
            self.problems.append(f"{where}.scale: 0 leaves nothing of the value")
        if entry.get("change") is not None:
            self._choice(f"{where}.change", entry["change"], CHANGE_NAMES)
        clip = entry.get("clip")
        if clip is not None and not (_numbers(clip, 2) and clip[0] < clip[1]):
            self.problems.append(f"{where}.clip: expected [lowest, highest], got {clip!r:.80}")
        names = entry.get("names")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            self.problems.append(f"{where}.names: expected a list of names, got {names!r:.80}")
        if len(self.problems) > before:
            return None
        start = entry.get("start", 0)
        if entry["end"] - start != len(names):
            self.problems.append(
                f"{where}: {entry['end'] - start} dimensions ({start} to {entry['end']}), {len(names)} names"
            )
            return None
        return VectorSpec(**{**entry, "start": start, "names": tuple(names), "clip": tuple(clip) if clip else None})

    def _cameras(self, values: Any) -> dict[str, CameraSpec]:
        cameras = {}
        for name, entry in values.items() if isinstance(values, dict) else ():
            before = len(self.problems)
            if not isinstance(name, str) or not name.startswith("observation.image") or "/" in name:
                self.problems.append(f"cameras: expected names like observation.images.head, got {name!r:.80}")
            if not self._keys(f"cameras.{name}", entry, CameraSpec):
                continue
            self._text(f"cameras.{name}.source", entry.get("source"))
            self._choice(f"cameras.{name}.flip", entry.get("flip", "none"), FLIPS)
            self._choice(f"cameras.{name}.channels", entry.get("channels", "rgb"), CHANNELS)
            size = entry.get("resize")
            if size is not None and not (_numbers(size, 2) and all(type(n) is int and 1 < n <= 4096 for n in size)):
                self.problems.append(f"cameras.{name}.resize: expected [height, width], got {size!r:.80}")
            if len(self.problems) == before:
                cameras[name] = CameraSpec(**{**entry, "resize": tuple(size) if size else None})
        return cameras

    def _clock(self, values: Any) -> Clock | None:
        if values is None or not self._keys("clock", values, Clock):
            return None
        self._text("clock.source", values.get("source"))
        self._choice("clock.unit", values.get("unit", "s"), tuple(CLOCK_UNITS))
        return None if self.problems else Clock(**values)

    def _keys(self, where: str, values: Any, kind: type) -> bool:
        known = [item.name for item in fields(kind)]
        if not isinstance(values, Dict):
            self.problems.append(f"{where}: expected a mapping with {known}, got {values!r:.80}")
            return False
        if unknown := [key for key in values if key not in known]:
            self.problems.append(f"{where}: unknown keys {unknown}; it has {known}")
        return not unknown

    def _integer(self, where: str, value: Any, low: int, high: int, or_none: bool = False) -> None:
        if not (value is None and or_none) and not (type(value) is int and low <= value <= high):
            self.problems.append(f"{where}: expected an integer from {low} to {high}, got {value!r:.80}")

    def _number(self, where: str, value: Any) -> None:
        if not _numbers([value], 1):
            self.problems.append(f"{where}: expected a finite number, got {value!r:.80}")

    def _text(self, where: str, value: Any, or_none: bool = False) -> None:
        if not (value is None and or_none) and not (isinstance(value, str) and value.strip()):
            self.problems.append(f"{where}: expected text, got {value!r:.80}")

    def _choice(self, where: str, value: Any, choices: tuple[str, ...]) -> None:
        if value not in choices:
            self.problems.append(f"{where}: expected one of {list(choices)}, got {value!r:.80}")


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(type(v) in (int, float) and abs(v) < float("inf") for v in values)
    )
