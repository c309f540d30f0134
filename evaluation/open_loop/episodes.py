"""Which episodes a policy is compared on, and whether the data is of its robot."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syvla.processing.embodiment_comparison import compare_embodiment
from syvla.processing.robot_data.metadata import read_metadata
from syvla.processing.robot_data.robot_dataset import RobotDataset
from syvla.processing.robot_data.source import locate_dataset

logger = logging.getLogger(__name__)

ACCEPTABLE = ("names", "rate", "statistics")
"""Differences between data and checkpoint that a user may overrule."""

RUN_FILE = "training_run.json"
"""File beside a checkpoint's card with the facts of its run, among them what was held out."""

RUN_SETTINGS = "run_settings.json"
"""File of a training checkpoint that is to be continued, which says the same."""


@dataclass(frozen=True)
class OpenedEpisodes:
    """Data of one comparison.

    Attributes:
        held_out: `RobotDataset` of the episodes to compare on.
        training: All other episodes of the dataset, which the baselines learn from; None if there are none.
        seen_in_training: Episodes of `held_out` that the checkpoint's run trained on.
        origin: Where the choice comes from, in words.
    """

    held_out: Any
    training: Any
    seen_in_training: list[int]
    origin: str


@dataclass(frozen=True)
class EpisodeRequest:
    """What the command line says about data.

    Attributes:
        dataset: Folder or "organization/name" on the Hub.
        episodes: Episodes to compare on; None: those that the training run held out.
        embodiment: Name of the robot; None: the checkpoint's only one.
        cameras: View to camera feature; None: as the checkpoint was trained.
        reader: Further arguments of `RobotDataset`.
        accept: Kinds of `ACCEPTABLE` in which the data may differ from the checkpoint.
        steps: Steps of each chunk to compare; None: all.
    """

    dataset: str
    episodes: Sequence[int] | None = None
    embodiment: str | None = None
    cameras: Mapping[str, str] | None = None
    reader: Mapping[str, Any] | None = None
    accept: Sequence[str] = ()
    steps: int | None = None


def open_episodes(request: EpisodeRequest, processor: Any, checkpoint: str | Path) -> OpenedEpisodes:
    """Opens the held-out episodes and the others.

    Raises:
        ValueError: If nothing is held out, an episode does not exist, cameras are missing, the data is not of the
            checkpoint's robot, or every episode is shorter than what is compared of a chunk.
        FileNotFoundError: If there is no such dataset.
    """
    embodiment = _embodiment(request.embodiment, processor)
    entry = processor.embodiments[embodiment]
    options = dict(request.reader or {})
    if clash := sorted(set(options) & {"episodes", "embodiment", "cameras", "chunk_size", "views"}):
        raise ValueError(f"reader: {clash[0]!r} is not the reader's to say here; use the command's own options")
    root = locate_dataset(request.dataset, revision=options.get("revision"), episodes=())
    metadata = read_metadata(root)
    recorded = recorded_split(checkpoint, request.dataset)
    held, origin = _chosen(request, recorded, metadata.info.total_episodes)
    cameras = _cameras(request.cameras, entry, metadata.info.camera_keys)
    others = [episode for episode in range(metadata.info.total_episodes) if episode not in set(held)]

    def read(episodes: Sequence[int]) -> Any:
        return RobotDataset(
            request.dataset, embodiment=embodiment, cameras=cameras, chunk_size=processor.chunk_size,
            views=processor.views, episodes=episodes, **options,
        )  # fmt: skip

    held_out = read(held)
    training = read(others) if others else None
    _require_robot(entry, embodiment, held_out, training, request.accept)
    compared = request.steps or processor.chunk_size
    longest = int(held_out.episode_lengths.max() * held_out.control_hz / held_out.fps)
    if longest < compared:
        raise ValueError(
            f"chunk: {compared} steps are compared, but the longest of the episodes has {longest}, so no chunk is ever "
            f"complete; compare the first ones only, with --steps {longest}, or choose longer episodes"
        )
    seen = [] if recorded is None else sorted(set(held) - set(recorded))
    return OpenedEpisodes(held_out, training, seen, origin)


def recorded_split(checkpoint: str | Path, dataset: str) -> list[int] | None:
    """Episodes of a dataset that the checkpoint's training run held out; None where that is not recorded.

    Every folder that training writes says so beside its card, and goes to the Hub with it. Earlier versions noted it in
    their checkpoints alone, of which the newest is asked.

    Args:
        checkpoint: Folder, or "organization/name" on the Hub.
        dataset: Folder or name of the dataset; its last part is compared.
    """
    name = str(dataset).rstrip("/").rsplit("/", 1)[-1]
    for source, episodes in _held_out_data(checkpoint):
        if source == name and isinstance(episodes, list):
            return [int(episode) for episode in episodes]
    return None


def _held_out_data(checkpoint: str | Path) -> list[Any]:
    """Pairs of a dataset's name and its held-out episodes, or number of rows."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        file = _from_hub(str(checkpoint))
        return [] if file is None else _read(file).get("held_out_data") or []
    if (found := _read(folder / RUN_FILE).get("held_out_data")) is not None:
        return list(found)
    steps = sorted(folder.glob("checkpoint-*"), key=lambda path: _number(path.name))
    for place in [folder, *reversed(steps)]:
        if (path := place / RUN_SETTINGS).is_file():
            return (_read(path).get("fixed") or {}).get("held_out") or []
    return []


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _from_hub(checkpoint: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        return Path(hf_hub_download(checkpoint, RUN_FILE))
    except (EntryNotFoundError, HFValidationError):  # the first also where the Hub cannot be asked
        return None


def parse_episodes(text: str) -> list[int]:
    """Episodes as "3,7-9" says them.

    Raises:
        ValueError: If the text says something else.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"episodes: expected numbers and ranges such as 3,7-9, got {text!r}")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def _number(name: str) -> int:
    number = name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1


def _embodiment(name: str | None, processor: Any) -> str:
    known = sorted(processor.embodiments)
    if name is None and len(known) == 1:
        return str(known[0])
    if name not in processor.embodiments:
        what = "name one with --embodiment" if name is None else f"got {name!r}"
        raise ValueError(f"embodiment: the checkpoint knows {known or 'no robot'}; {what}")
    return str(name)


def _chosen(request: EpisodeRequest, recorded: list[int] | None, total: int) -> tuple[list[int], str]:
    if request.episodes is not None:
        chosen, origin = list(request.episodes), "named by the user"
        if recorded is None:
            origin += "; whether the policy was trained on them is not recorded"
    elif recorded is not None:
        chosen, origin = recorded, "held out by the training run"
    else:
        raise ValueError(
            f"episodes: nothing is known to be held out of {request.dataset}: the checkpoint records no eval_split of a "
            "dataset of this name. Name episodes that it was not trained on, for example --episodes 3,7-9, or train with "
            "--eval_split 0.1"
        )
    if outside := [episode for episode in chosen if not 0 <= episode < total]:
        raise ValueError(f"episodes: {outside[:10]} do not exist; the dataset has episodes 0 to {total - 1}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"episodes: an episode is listed twice in {chosen}; list each once")
    return chosen, origin


def _cameras(
    given: Mapping[str, str] | None, entry: Mapping[str, Any], available: Sequence[str]
) -> dict[str, str] | None:
    """View to camera feature; None leaves it to the features' names."""
    trained = entry.get("cameras")
    cameras = dict(given or trained or {})
    missing = {view: key for view, key in cameras.items() if key not in available}
    if missing:
        whose = "the command names" if given else "the checkpoint was trained with"
        listed = ", ".join(f"{view} = {key}" for view, key in missing.items())
        raise ValueError(
            f"cameras: {whose} {listed}, which the dataset lacks; it has {list(available)}. Say which camera shows what, for "
            f"example --camera {next(iter(missing))}={next(iter(available), 'FEATURE')}"
        )
    if given and trained and (left_out := sorted(set(trained) - set(given))):
        logger.warning("views %s, which the policy was trained with, are left out; they will be masked", left_out)
    return cameras or None


def _require_robot(
    entry: Mapping[str, Any], embodiment: str, held_out: Any, training: Any, accept: Sequence[str]
) -> None:
    if unknown := sorted(set(accept) - set(ACCEPTABLE)):
        raise ValueError(f"accept: expected some of {', '.join(ACCEPTABLE)}, got {unknown[0]!r}")
    data: dict[str, Any] = {"state_dim": held_out.state_dim, "action_dim": held_out.action_dim}
    if data["state_dim"] == entry["state_dim"] and data["action_dim"] == entry["action_dim"]:
        data |= {
            "state_names": held_out.state_names,
            "action_names": held_out.action_names,
            "control_hz": held_out.control_hz,
            "statistics": (training or held_out).statistics(entry.get("delta_actions")),
        }
    problems = [one for one in compare_embodiment(entry, data) if one.kind not in accept]
    if not problems:
        return
    fixes = ["measure on data of this robot"]
    kinds = {one.kind for one in problems}
    if "rate" in kinds:
        fixes.append(f"resample with --reader '{{\"control_hz\": {entry['control_hz']:g}}}'")
    if kinds <= set(ACCEPTABLE):
        fixes.append(f"measure all the same with --accept {' '.join(sorted(kinds))}")
    listed = "".join(f"\n- {one.kind}: {one.message}" for one in problems)
    raise ValueError(
        f"the data is not of {embodiment!r} as the checkpoint knows it:{listed}\nEither {'; or '.join(fixes)}"
    )
