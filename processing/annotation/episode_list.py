"""The list of episodes, page by page and by what is still to do."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .annotator import Annotator

SHOWN = ("all", "open", "proposed", "done", "flagged")


def list_episodes(
    annotator: Annotator, show: str, search: str, start: int, count: int, flagged: Collection[int] = ()
) -> dict[str, Any]:
    """A part of the list.

    Args:
        annotator: The dataset.
        show: "all", "open" (without sub-tasks), "proposed" (with a proposal), "done" (with sub-tasks) or "flagged".
        search: An episode's number, or words of its instruction.
        start: First entry.
        count: Most entries.
        flagged: Episodes that something is to be said about.

    Returns:
        `total` entries of the whole list, and `rows` of [episode, seconds, task index, sub-tasks, has a proposal, is
        flagged].
    """
    data = annotator.data
    done, proposed = annotator.annotated(), set(annotator.proposals.episodes())
    words = search.lower().split()
    tasks = {index for index, task in enumerate(data.tasks) if all(word in task.lower() for word in words)}
    number = search.strip()

    def is_shown(episode: int) -> bool:
        is_so = {"open": not done[episode], "done": done[episode], "proposed": episode in proposed}
        return show == "all" or is_so.get(show, episode in flagged)

    def is_found(episode: int) -> bool:
        return not words or (number.isdigit() and str(episode).startswith(number)) or data.task_index(episode) in tasks

    chosen = [episode for episode in range(data.num_episodes) if is_shown(episode) and is_found(episode)]
    rows = [
        [
            episode,
            round(data.length(episode) / data.fps, 2),
            data.task_index(episode),
            len(annotator.subtasks(episode)),
            episode in proposed,
            episode in flagged,
        ]
        for episode in chosen[start : start + count]
    ]
    return {"total": len(chosen), "rows": rows}
