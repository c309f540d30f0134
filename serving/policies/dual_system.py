"""Dual-system serving (section 3.1 of the paper): the VLM runs in the background while the expert keeps acting.

A call does not wait for the VLM. It acts on fresh images, state and the newest query states of its session, and says how
old these are; a bound on the age turns into a wait. See `query_refresher` for sessions and ages. A caller that answers
several sessions in one thread first submits each observation, so that no session waits for the VLM of another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from syvla.serving.contract.action_chunks import ActionChunks
from syvla.serving.contract.requests import PreviousChunk

from .in_process import Intention, SyVLAPolicy
from .query_refresher import MAX_AGE_S, QueryInput, QueryRefresher, QueryTicket

_KEPT_RUNS = 1024  # for `take_vlm_seconds`, whose caller may be slow, or missing


class DualSystemPolicy:
    """A `SyVLAPolicy` whose VLM runs in the background.

    Args:
        policy: Its `think` says whether thoughts are generated in the background.
        max_query_age: Seconds; a call waits instead of acting on older query states, and raises if the VLM fails. None: a
            call waits only if it is its session's first one, the first one after the instruction changed, or the VLM has
            failed several times in a row.
        **options: Further arguments of `QueryRefresher`.
    """

    def __init__(self, policy: SyVLAPolicy, *, max_query_age: float | None = MAX_AGE_S, **options: Any) -> None:
        self.policy = policy
        self.name, self.chunk_size = policy.name, policy.chunk_size
        self._stream = torch.cuda.Stream() if policy.model.device.type == "cuda" else None
        self._vlm_seconds: deque[Mapping[str, float]] = deque(maxlen=_KEPT_RUNS)
        self.refresher: QueryRefresher[Intention] = QueryRefresher(self._run_vlm, max_age=max_query_age, **options)

    def submit(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, instruction: str, session: str
    ) -> QueryTicket[Intention]:
        """Gives an observation to the VLM. Once the ticket is `done`, `predict` answers it without waiting.

        Args:
            images: Camera to uint8 (H, W, 3).
            state: float32 (D_state,), physical units.
            instruction: What the robot is to do.
            session: Whose observation it is. A new episode needs a new name, or `forget` for the old one's.
        """
        return self.refresher.submit(QueryInput(session, (images, state), instruction))

    def predict(
        self,
        images: Sequence[Mapping[str, np.ndarray]],
        states: Sequence[np.ndarray],
        tickets: Sequence[QueryTicket[Intention]],
        *,
        seeds: Sequence[int],
        previous: Sequence[PreviousChunk | None] | None = None,
        num_steps: int | None = None,
        noise: Sequence[np.ndarray | None] | None = None,
    ) -> ActionChunks:
        """Action chunks for B observations; waits for tickets that are not done.

        Args:
            images, states: See `SyVLAPolicy.inputs`.
            tickets: What `submit` returned for these observations.
            seeds, previous, num_steps, noise: See `SyVLAPolicy.denoise`.

        Returns:
            Chunks with `query_ages`, how old the query states of each are, and `vlm_seconds`, what computing them took.
        """
        newest = [self.refresher.newest(ticket) for ticket in tickets]
        intention = join_intentions([found for found, _ in newest])
        inputs = self.policy.expert_inputs(images, states)
        denoise = self.policy.denoise
        actions = denoise(inputs, intention, seeds=seeds, previous=previous, num_steps=num_steps, noise=noise)
        ages, seconds = [age for _, age in newest], [found.seconds for found, _ in newest]
        return ActionChunks(actions, intention.thoughts, query_ages=ages, vlm_seconds=seconds)

    def take_vlm_seconds(self) -> list[Mapping[str, float]]:
        """Seconds per phase of every background run of the VLM that has ended since the last call."""
        runs = []
        with suppress(IndexError):  # another thread may add or take at the same time
            while True:
                runs.append(self._vlm_seconds.popleft())
        return runs

    def forget(self, session: str) -> None:
        """Drops the query states of a session whose episode is over."""
        self.refresher.drop(session)

    def close(self) -> None:
        """Ends the background thread."""
        self.refresher.close()

    def _run_vlm(self, observed: Sequence[QueryInput]) -> list[Intention]:
        images, states = zip(*(one.observation for one in observed), strict=True)
        # On a GPU a stream of its own lets the expert's short kernels run between those of the VLM.
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            inputs = self.policy.inputs(images, states, [str(one.basis) for one in observed])
            intention = self.policy.intention(inputs)  # has waited for the stream when it returns
        self._vlm_seconds.append(intention.seconds)
        return split_intention(intention)


def split_intention(intention: Intention) -> list[Intention]:
    """One intention per sample of a batch."""
    return [
        Intention(
            intention.query_states[row : row + 1],
            None if intention.mask is None else intention.mask[row : row + 1],
            None if intention.thoughts is None else intention.thoughts[row : row + 1],
            None if intention.plain_states is None else intention.plain_states[row : row + 1],
            intention.seconds,
        )
        for row in range(len(intention.query_states))
    ]


def join_intentions(intentions: Sequence[Intention]) -> Intention:
    """The inverse of `split_intention`, without `seconds`; states of unequal number are padded and masked."""
    longest = max(one.query_states.shape[1] for one in intentions)
    states = torch.cat([F.pad(one.query_states, (0, 0, 0, longest - one.query_states.shape[1])) for one in intentions])
    mask = None
    if any(one.mask is not None or one.query_states.shape[1] < longest for one in intentions):
        own = [torch.ones_like(one.query_states[..., 0], dtype=torch.bool) for one in intentions]
        masks = [whole if one.mask is None else one.mask for one, whole in zip(intentions, own, strict=True)]
        mask = torch.cat([F.pad(one, (0, longest - one.shape[1]), value=False) for one in masks])
    thoughts = [text for one in intentions for text in one.thoughts or [""]]
    plain = [one.plain_states for one in intentions if one.plain_states is not None]  # all have some, or none
    texts = None if all(one.thoughts is None for one in intentions) else thoughts
    return Intention(states, mask, texts, torch.cat(plain) if plain else None)
