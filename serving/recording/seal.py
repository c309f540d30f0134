"""Seals a rollout: a LeRobot dataset of one episode in a folder of its own, whole or absent.

The episode is written aside, sealed with its facts and a list of its files (`syvla.sealed_folders`), and gets its name in one
step. Only the episode's facts file (`episode_facts`) changes afterwards, when somebody labels the episode.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from syvla.sealed_folders import folder_problems, publish_folder, seal_folder

from .episode_facts import EpisodeFacts, facts_path

SEAL = "seal.json"


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
