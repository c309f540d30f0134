"""What a server that is started again makes of the rollouts and the journal that it finds. No torch."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from syvla.serving.recording.episode_facts import EpisodeFacts, read_facts, write_facts
from syvla.serving.recording.seal import SEAL, rollout_problem, sealed_facts

from .journal import Journal

logger = logging.getLogger(__name__)


def recover_rollouts(root: Path, journal: Journal) -> tuple[dict[str, EpisodeFacts | None], list[str]]:
    """Puts `rollouts/` and the journal in agreement.

    Episodes that were open are given up. Sealed ones stay; a damaged one is moved to `.damaged/`, and a label that the
    journal holds and the episode does not is set again.

    Args:
        root: Folder of the rollouts.
        journal: Of the run; what is done is written into it.

    Returns:
        (episode to its facts, None for those that are no more; what was done, one text each).
    """
    begun, labels, unfinished = _read(journal)
    done: list[str] = []
    if journal.torn:
        done.append(f"journal: {journal.torn} line(s) were cut off by a crash and are passed over")
    for seal in sorted(root.glob(f"*/{SEAL}")):
        folder = seal.parent
        if folder.name.startswith("."):
            continue
        if (problem := rollout_problem(folder)) is not None:
            (root / ".damaged").mkdir(exist_ok=True)
            folder.rename(root / ".damaged" / folder.name)
            begun[folder.name] = None
            done.append(f"episode {folder.name}: damaged ({problem}); moved to {root.name}/.damaged")
            journal.write("abort", episode_id=folder.name, why=f"damaged: {problem}")
        else:
            begun[folder.name] = _facts(folder, labels.get(folder.name), done)
    for name in [name for name, facts in begun.items() if facts is None and name in unfinished]:
        done.append(f"episode {name}: was open when the server ended; aborted")
        journal.write("abort", episode_id=name, why="the server was restarted")
    shutil.rmtree(root / ".open", ignore_errors=True)
    waiting = sum(facts is not None and facts.outcome is None for facts in begun.values())
    labelled = sum(facts is not None and facts.outcome is not None for facts in begun.values())
    if begun:
        done.append(f"recovered {labelled} labelled rollout(s) and {waiting} that wait for a reward")
    for text in done:
        logger.warning("%s", text)
    return begun, done


Label = tuple[int, bool | None]
"""Reward, and whether a 0 only means that the time was up, see `EpisodeFacts.cut_off`."""


def _read(journal: Journal) -> tuple[dict[str, EpisodeFacts | None], dict[str, Label], set[str]]:
    """(all episodes, last label of each labelled one, those without an end)."""
    begun: dict[str, EpisodeFacts | None] = {}
    labels: dict[str, Label] = {}
    unfinished: set[str] = set()
    for event in journal.events:
        name = event.get("episode_id")
        if not isinstance(name, str):
            continue
        begun[name] = None
        if event.get("event") == "begin":
            unfinished.add(name)
        elif event.get("event") in ("end", "abort"):
            unfinished.discard(name)
        elif event.get("event") == "reward" and event.get("reward") in (0, 1):
            labels[name] = (event["reward"], event.get("timed_out"))
    return begun, labels, unfinished


def _facts(folder: Path, label: Label | None, done: list[str]) -> EpisodeFacts:
    """The facts of a sealed rollout, made anew from its seal and the journal where they are damaged or behind."""
    reward, cut_off = (None, None) if label is None else label
    try:
        facts = read_facts(folder, 0)
    except ValueError:
        facts = replace(sealed_facts(folder), outcome=reward, cut_off=cut_off)
        done.append(f"episode {folder.name}: its facts were damaged and are restored; reward {reward}")
        write_facts(folder, 0, facts)
    if reward is not None and (facts.outcome, facts.cut_off) != (reward, cut_off):
        done.append(f"episode {folder.name}: reward {reward} is set as the journal has it")
        facts = replace(facts, outcome=reward, cut_off=cut_off)
        write_facts(folder, 0, facts)
    return facts
