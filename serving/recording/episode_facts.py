"""What belongs to a whole recorded episode: one JSON file beside the data, `meta/rollouts/episode-NNNNNN.json`.

A rollout is sealed with its facts: a LeRobot dataset of one episode in a folder of its own, whole or absent. The episode is
written aside, sealed with its facts and a list of its files (`syvla.sealed_folders`), and gets its name in one step. Only the
file of facts changes afterwards, when somebody labels the episode.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from syvla.durable_files import write_json
from syvla.sealed_folders import folder_problems, publish_folder, seal_folder

TIME_OUTS = ("time limit", "timeout")
"""Values of an episode's `ended` that say that a time limit cut it off."""

SEAL = "seal.json"


@dataclass(frozen=True)
class EpisodeFacts:
    """Contents of the file.

    Attributes:
        episode_id: The client's or the server's name for it, unique in the dataset.
        session: Who ran it.
        embodiment: Name of the robot.
        instruction: The first one, if the client changed it on the way.
        outcome: 1 success, 0 failure, a number between them where people grade; None as long as nobody has said.
        ended: "client", "time limit", "new episode", "disconnected", "expired" or "server stopped".
        cut_off: By the word of who labeled it, whether outcome 0 only means that the time was up (True) or that it failed
            (False); None: as `ended` says.
        started_at, ended_at: Unix time, seconds.
        decisions: Number of chunks.
        corrections: Control steps at which a person acted instead of the policy.
        policy_versions: Distinct, in order of use; one alone unless weights were swapped in mid-episode.
    """

    episode_id: str
    session: str
    embodiment: str
    instruction: str = ""
    outcome: float | None = None
    ended: str = ""
    cut_off: bool | None = None
    started_at: float = 0.0
    ended_at: float = 0.0
    decisions: int = 0
    corrections: int = 0
    policy_versions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy_versions", tuple(self.policy_versions))  # JSON has lists

    @property
    def timed_out(self) -> bool:
        """Whether a time limit cut it off, so that outcome 0 does not say that it would have failed."""
        return self.ended in TIME_OUTS if self.cut_off is None else self.cut_off


def facts_path(root: Path, episode_index: int) -> Path:
    return root / "meta" / "rollouts" / f"episode-{episode_index:06d}.json"


def read_facts(root: Path, episode_index: int) -> EpisodeFacts:
    """The facts of a recorded episode. Raises ValueError that names the file if it cannot be read."""
    path = facts_path(root, episode_index)
    try:
        return EpisodeFacts(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); restore the file") from error


def write_facts(root: Path, episode_index: int, facts: EpisodeFacts) -> None:
    """Puts the facts of a recorded episode in place. Labels are set in this way."""
    write_json(facts_path(root, episode_index), asdict(facts))


def is_reward(value: Any) -> bool:
    """Whether a value is a reward: a number from 0 (failure) to 1 (success)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1  # False for NaN


def reward_problem(value: Any, graded: bool) -> str | None:
    """Why a person's reward is none; None if it is one. `graded`: numbers between 0 and 1 are taken as well."""
    if graded and not is_reward(value):
        return f"reward: expected a number from 0 (failure) to 1 (success), got {value!r:.60}"
    if not graded and (type(value) is not int or value not in (0, 1)):
        return f"reward: expected 1 (success) or 0 (failure), got {value!r:.60}"
    return None


def check_outcome(outcome: Any) -> int | None:
    """Raises ValueError unless `outcome` is 0, 1 or None."""
    if outcome is None:
        return None
    if isinstance(outcome, bool) or outcome not in (0, 1):
        raise ValueError(f"outcome: expected 1 (success), 0 (failure) or nothing, got {outcome!r:.80}")
    return int(outcome)


# ---------------------------------------------------------------------- sealed rollouts


def seal_rollout(folder: Path, target: Path, facts: EpisodeFacts) -> None:
    """Seals the dataset in `folder` and renames it to `target`."""
    seal_folder(folder, SEAL, {"facts": asdict(facts)}, changing=[facts_path(folder, 0)])
    publish_folder(folder, target)


def rollout_problem(folder: Path) -> str | None:
    """What is wrong with a sealed rollout, None if nothing is. The label may have changed since."""
    return "; ".join(folder_problems(folder, SEAL)[:3]) or None


def sealed_facts(folder: Path) -> EpisodeFacts:
    """The facts as they were when the rollout was sealed, before any label."""
    return EpisodeFacts(**json.loads((folder / SEAL).read_text(encoding="utf-8"))["facts"])
