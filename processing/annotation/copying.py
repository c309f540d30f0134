"""Copies the sub-tasks of one episode to others, each boundary to where the other's motion corresponds."""

from __future__ import annotations

import re

from .alignment import transferred
from .annotator import Annotator
from .episode_view import MotionScales
from .proposals import Proposal

SAME_TASK = "task"
MOST_TARGETS = 2000
"""Episodes of one copy. Ours: it takes about 10 ms each."""


def parse_episodes(text: str, total: int) -> list[int]:
    """Episode numbers of a text such as "3, 7-9".

    Raises:
        ValueError: It is no such text, or names an episode that does not exist.
    """
    found: list[int] = []
    for part in filter(None, re.split(r"[,\s]+", text.strip())):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < total:
            raise ValueError(f"episodes: expected numbers from 0 to {total - 1} such as '3, 7-9', got {part!r:.40}")
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def copy_subtasks(
    annotator: Annotator, scales: MotionScales, source: int, targets: str, *, replace: bool, as_proposals: bool
) -> list[int]:
    """Copies in one step that can be undone.

    Args:
        annotator: The dataset.
        scales: Of its states.
        source: Episode whose sub-tasks are copied.
        targets: Episodes as `parse_episodes` takes them, or "task": all with the same instruction.
        replace: Whether episodes that have sub-tasks get the copy too.
        as_proposals: Whether the copies are proposals, to be looked at one by one.

    Returns:
        The episodes that changed or have a new proposal.

    Raises:
        ValueError: The source has no sub-tasks, or there are no targets, or too many.
    """
    data, subtasks = annotator.data, annotator.subtasks(source)
    if annotator.read_only:
        raise ValueError("the dataset is open for a look only; `syvla-annotate` changes it")
    if not subtasks:
        raise ValueError(f"episode {source} has no sub-tasks to copy")
    if targets.strip() == SAME_TASK:
        task = data.task_index(source)
        wanted = [episode for episode in range(data.num_episodes) if data.task_index(episode) == task]
    else:
        wanted = parse_episodes(targets, data.num_episodes)
    done = annotator.annotated()
    wanted = [episode for episode in wanted if episode != source and (replace or not done[episode])]
    if as_proposals:
        wanted = [episode for episode in wanted if annotator.proposals.is_free(episode)]
    if not wanted:
        raise ValueError("targets: no episode is left; those that have sub-tasks get a copy only if you say so")
    if len(wanted) > MOST_TARGETS:
        raise ValueError(f"targets: {len(wanted)} episodes, more than {MOST_TARGETS}; name fewer at a time")
    ranges, _ = scales()
    copies = {
        episode: transferred(subtasks, data.states(source), data.states(episode), data.state_names, ranges, data.fps)
        for episode in wanted
    }
    if as_proposals:
        annotator.proposals.add(
            *(Proposal(episode, f"copied from episode {source}", copied, ()) for episode, copied in copies.items())
        )
        return wanted
    return annotator.change(f"copy from episode {source} to {len(wanted)}", copies)
