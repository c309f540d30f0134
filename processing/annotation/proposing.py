"""Proposals of sub-tasks by a vision model, many at a time, each kept as soon as it is there."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

import numpy as np
from PIL import Image

from .annotator import Annotator
from .boundaries import motion_boundaries
from .episode_view import MotionScales
from .pictures import to_jpeg
from .proposal_checks import MOST_PROPOSED, fit_problems, json_object, parse_answer
from .proposals import Proposal
from .subtasks import Subtasks
from .vision_server import ServerError, VisionServer, filled

logger = logging.getLogger(__name__)

FRAMES = 16
"""Times of an episode that a model sees. Ours: Qwen2.5-VL takes about 300 tokens for a picture of 448 x 448."""
_HEIGHT = 256  # of each camera in a picture
_WIDEST = 1280
_SUBTASK_S = 1.5  # at most one sub-task per so many seconds, and at least 6 in all
_KNOWN_TEXTS = 20


class Proposer:
    """Asks a server about episodes and keeps its proposals.

    Args:
        annotator: The dataset's sub-tasks.
        server: Which model.
        prompts: See `load_prompts`.
        frames: Times of an episode that the model sees.
        verify: Whether to ask a second time if the proposal fits.
        cameras: Cameras that the model sees, side by side; None: all.
    """

    def __init__(
        self,
        annotator: Annotator,
        server: VisionServer,
        prompts: Mapping[str, str],
        *,
        frames: int = FRAMES,
        verify: bool = False,
        cameras: Sequence[str] | None = None,
    ) -> None:
        data = annotator.data
        if frames < 2:
            raise ValueError(f"frames: expected at least 2, got {frames}")
        if unknown := sorted(set(cameras or ()) - set(data.cameras)):
            raise ValueError(f"cameras: {unknown} are no cameras of this dataset; choose from {data.cameras}")
        if not data.cameras:
            raise ValueError("cameras: the dataset has none, and the model needs pictures")
        self._annotator, self._data, self._server, self._prompts = annotator, data, server, prompts
        self._frames, self._verify = frames, verify
        self._cameras = list(cameras or data.cameras)
        self._scales = MotionScales(data)

    def propose(self, episode: int) -> str | None:
        """Asks about an episode and keeps the proposal; returns the reason where there is none."""
        if not self._annotator.proposals.is_free(episode):
            return "its proposal is your own; accept or dismiss that first"
        try:
            self._annotator.proposals.add(self._proposal(episode))
        except (ServerError, ValueError) as error:
            return str(error)
        return None

    def propose_many(self, episodes: Sequence[int], at_once: int) -> Iterator[tuple[int, str | None]]:
        """Asks about episodes, `at_once` at a time; yields each with the reason where there is no proposal.

        Raises:
            ServerError: The server answers nothing at all.
        """
        if at_once < 1:
            raise ValueError(f"at-once: expected at least 1, got {at_once}")
        self._server.model_name()
        waiting = iter(episodes)
        with ThreadPoolExecutor(at_once) as pool:
            running: dict[Future[str | None], int] = {}
            try:
                while True:
                    for episode in islice(waiting, at_once - len(running)):
                        running[pool.submit(self.propose, episode)] = episode
                    if not running:
                        return
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(done), done.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _proposal(self, episode: int) -> Proposal:
        data = self._data
        length, task = data.length(episode), data.task(episode)
        ranges, lows = self._scales()
        boundaries = motion_boundaries(data.states(episode), data.state_names, ranges, lows, data.fps)
        pictures = self._pictures(episode, [one.frame for one in boundaries])
        texts = [text for text, _ in self._annotator.texts(data.task_index(episode))[:_KNOWN_TEXTS]]
        question = filled(
            self._prompts["propose"],
            task=task,
            seconds=f"{length / data.fps:.2f}",
            boundaries=", ".join(f"{one.frame / data.fps:.2f} s ({one.reason})" for one in boundaries),
            texts="; ".join(texts) or "none yet",
            most=min(MOST_PROPOSED, max(6, math.ceil(length / data.fps / _SUBTASK_S))),
        )
        answer = self._server.ask(self._prompts["system"], question, pictures)
        try:
            subtasks = parse_answer(answer, length, data.fps, [one.frame for one in boundaries])
        except ValueError as error:
            raise ValueError(f"the model's answer cannot be used: {error}") from error
        problems = fit_problems(subtasks, task, data.tasks, length, data.fps)
        if self._verify:
            problems += self._doubts(subtasks, task, length, pictures)
        return Proposal(episode, f"model {self._server.model_name()}", subtasks, tuple(problems))

    def _doubts(self, subtasks: Subtasks, task: str, length: int, pictures: Sequence[tuple[str, bytes]]) -> list[str]:
        fps = self._data.fps
        listed = "; ".join(f"{frame / fps:.2f} s: {text}" for frame, text in subtasks)
        question = filled(self._prompts["verify"], task=task, seconds=f"{length / fps:.2f}", subtasks=listed)
        try:
            value = json_object(self._server.ask(self._prompts["system"], question, pictures))
        except ValueError as error:
            return [f"the model did not say whether they fit: {error}"]
        if value.get("fits") is True:
            return []
        return [f"the model doubts that they fit: {str(value.get('why', 'no reason given'))[:200]}"]

    def _pictures(self, episode: int, boundaries: Sequence[int]) -> list[tuple[str, bytes]]:
        """A caption and a picture of all cameras for times of the episode, the boundaries among them."""
        length = self._data.length(episode)
        even = np.linspace(0, length - 1, min(self._frames, length)).round().astype(int).tolist()
        chosen = set(even)
        for boundary in boundaries[1 : self._frames // 2]:  # in place of the evenly spaced one that is nearest
            nearest = min(chosen, key=lambda frame: abs(frame - boundary))
            chosen = (chosen - {nearest} if nearest not in (0, length - 1) else chosen) | {boundary}
        return [(f"t = {f / self._data.fps:.2f} s", self._side_by_side(episode, f)) for f in sorted(chosen)]

    def _side_by_side(self, episode: int, frame: int) -> bytes:
        views = [Image.fromarray(self._data.pictures.read(episode, frame, camera)) for camera in self._cameras]
        views = [view.resize((max(1, round(view.width * _HEIGHT / view.height)), _HEIGHT)) for view in views]
        joined = Image.new("RGB", (sum(view.width for view in views), _HEIGHT))
        left = 0
        for view in views:
            joined.paste(view, (left, 0))
            left += view.width
        return to_jpeg(np.asarray(joined), _WIDEST)
