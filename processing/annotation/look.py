"""What `syvla-look` shows beside the sub-tasks: the overview, found in the background, and every curve of an episode."""

from __future__ import annotations

import logging
import threading
from typing import Any

from .episode_data import EpisodeData
from .episode_view import curve
from .model_pictures import ModelPictures
from .overview import Overview, add_cleaning, overview_of
from .pictures import to_jpeg

logger = logging.getLogger(__name__)


class Look:
    """A look at a dataset.

    Args:
        data: The dataset.
        clean: Whether to apply the filters of `syvla-clean`.
        workers: Processes of that.
        model: Shows the pictures as a checkpoint sees them; None: does not.
        reader: See `overview_of`.
    """

    def __init__(
        self,
        data: EpisodeData,
        *,
        clean: bool = True,
        workers: int = 1,
        model: ModelPictures | None = None,
        **reader: Any,
    ) -> None:
        self.data, self.model = data, model
        self._clean, self._workers, self._reader = clean, workers, reader
        self._overview: Overview | None = None
        self._working = True
        self._problem: str | None = None

    def start(self) -> None:
        """Begins to look through the dataset, in a thread of its own."""
        threading.Thread(target=self._run, name="overview", daemon=True).start()

    def overview(self) -> dict[str, Any]:
        """What has been found so far; `working` says whether there is more to come."""
        found, working = self._overview, self._working
        if found is None:
            return {"working": working, "problem": self._problem, "found": None}
        return {
            "working": working,
            "problem": self._problem or found.problem,
            "found": {
                "statistics": found.statistics,
                "tasks": found.tasks,
                "views": found.views,
                "oddities": [[one.episode, one.kind, one.detail] for one in found.oddities[:500]],
                "num_oddities": len(found.oddities),
                "copies": [[group[:50], exact] for group, exact in found.copies[:200]],
                "cleaning": found.cleaning,
                "findings": [
                    [one.episode, one.filter, one.detail] for group in found.findings.values() for one in group
                ][:500],
                "num_findings": sum(map(len, found.findings.values())),
            },
        }

    def flagged(self) -> set[int]:
        return set() if self._overview is None else self._overview.flagged()

    def episode(self, episode: int) -> dict[str, Any]:
        """Curves of every dimension, remarks, and the frames that cleaning would remove."""
        found = self._overview
        removed = [] if found is None else found.findings.get(episode, [])
        length = self.data.length(episode)
        return {
            "episode": episode,
            "state": [curve(column) for column in self.data.states(episode).T],
            "action": [curve(column) for column in self.data.actions(episode).T],
            "remarks": [] if found is None else found.remarks(episode),
            "removed": [[one.start, length if one.stop is None else one.stop, one.filter] for one in removed],
        }

    def model_jpegs(self, episode: int, frame: int, camera: str, side: int) -> dict[str, bytes]:
        """A picture as the model gets it, by what takes it."""
        if self.model is None:
            raise ValueError("model: none was given; start the command with --model CHECKPOINT")
        made = self.model(self.data.pictures.read(episode, frame, camera))
        return {name: to_jpeg(picture, side) for name, picture in made.items()}

    def _run(self) -> None:
        try:
            found = overview_of(self.data, clean=False)
            self._overview = found
            if self._clean:
                add_cleaning(found, self.data, workers=self._workers, progress=False, **self._reader)
        except Exception as error:  # told on the page, which goes on without
            logger.exception("the overview failed")
            self._problem = f"{type(error).__name__}: {error}"
        finally:
            self._working = False
