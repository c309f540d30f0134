"""What a server that is started again makes of the rollouts and the ledger that it finds. No torch."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from syvla.serving.recording.episode_facts import (
    SEAL,
    EpisodeFacts,
    read_facts,
    rollout_problem,
    sealed_facts,
    write_facts,
)

from .ledger import ABORTED, DISCARDED, OPEN, Ledger, LedgerEntry

logger = logging.getLogger(__name__)

ABORTED_FOLDER = ".aborted"

DISCARDED_FOLDER = ".discarded"
"""Beside the rollouts: those that a person discarded, whole, so that they can be restored."""


def recover_rollouts(root: Path, ledger: Ledger) -> tuple[dict[str, EpisodeFacts | None], list[str]]:
    """Puts `rollouts/` and the ledger in agreement.

    Episodes that were open are given up. Sealed ones stay; a damaged one is moved to `.damaged/`, and a label that the
    ledger holds and the episode does not is set again.

    Args:
        root: Folder of the rollouts.
        ledger: Of the run; what is done is written into it.

    Returns:
        (episode to its facts, None for those that are no more; what was done, one text each).
    """
    done: list[str] = []
    if ledger.torn:
        done.append(f"journal: {ledger.torn} line(s) were cut off by a crash and are passed over")
    with ledger.exclusive() as known:
        _move_discarded(root, ledger)
        found: dict[str, EpisodeFacts | None] = dict.fromkeys(known.rollouts)
        for seal in sorted([*root.glob(f"*/{SEAL}"), *root.glob(f"{DISCARDED_FOLDER}/*/{SEAL}")]):
            folder = seal.parent
            if folder.name.startswith("."):
                continue
            entry = known.rollouts.get(folder.name)
            if entry is not None and entry.state == ABORTED:  # and killed before it was moved
                (root / ABORTED_FOLDER).mkdir(exist_ok=True)
                folder.rename(root / ABORTED_FOLDER / folder.name)
            elif (problem := rollout_problem(folder)) is not None:
                (root / ".damaged").mkdir(exist_ok=True)
                folder.rename(root / ".damaged" / folder.name)
                found[folder.name] = None
                done.append(f"episode {folder.name}: damaged ({problem}); moved to {root.name}/.damaged")
                ledger.write("abort", episode_id=folder.name, why=f"damaged: {problem}")
            else:
                found[folder.name] = _facts(folder, entry, ledger, done)
        for name in [name for name in known.names(OPEN) if found[name] is None]:
            done.append(f"episode {name}: was open when the server ended; aborted")
            ledger.write("abort", episode_id=name, why="the server was restarted")
        for name, entry in known.rollouts.items():
            if found[name] is None and entry.state != ABORTED:
                found.pop(name)  # recorded elsewhere, or removed by hand
    shutil.rmtree(root / ".open", ignore_errors=True)
    whole = [facts for facts in found.values() if facts is not None]
    labeled = sum(facts.outcome is not None for facts in whole)
    if found:
        done.append(f"recovered {labeled} labeled rollout(s) and {len(whole) - labeled} that wait for a reward")
    for text in done:
        logger.warning("%s", text)
    return found, done


def rollout_folder(root: Path, name: str, discarded: bool) -> Path:
    """Where a sealed rollout lies."""
    return root / DISCARDED_FOLDER / name if discarded else root / name


def move_rollout(root: Path, name: str, discarded: bool) -> None:
    """Moves a rollout to where it belongs, if it is not there yet."""
    source, target = rollout_folder(root, name, not discarded), rollout_folder(root, name, discarded)
    if source.is_dir():
        target.parent.mkdir(exist_ok=True)
        source.rename(target)


def _move_discarded(root: Path, ledger: Ledger) -> None:
    """Ends what a kill interrupted between an event and its move."""
    for name, entry in ledger.read().rollouts.items():
        move_rollout(root, name, entry.state == DISCARDED)


def _facts(folder: Path, entry: LedgerEntry | None, ledger: Ledger, done: list[str]) -> EpisodeFacts:
    """The facts of a sealed rollout, made anew from its seal and the ledger where they are damaged or behind."""
    reward, cut_off = (None, None) if entry is None else (entry.reward, entry.timed_out)
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
    if entry is None:
        version = facts.policy_versions[-1] if facts.policy_versions else ""
        ledger.write("begin", episode_id=folder.name, policy_version=version)
    if entry is None or entry.state == OPEN:  # sealed, and then killed before the ledger knew
        ledger.write("end", episode_id=folder.name, decisions=facts.decisions, ended=facts.ended)
    if reward is None and facts.outcome is not None:
        ledger.write("reward", episode_id=folder.name, reward=facts.outcome, timed_out=facts.cut_off, before=None)
    return facts
