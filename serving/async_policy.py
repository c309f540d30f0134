"""Dual-system serving (section 3.1 of the paper): the VLM looks on in the background while the expert keeps acting.

A call does not wait for the VLM. It acts on fresh images, state and the newest query states of its session, and says how
old these are; a bound on the age turns into a wait. See `query_refresher` for sessions and ages. Who answers several
sessions in one thread leaves each observation with `look` first, so that none of them waits for another's VLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from .action_chunks import ActionChunks
from .chunk_stitching import PreviousChunk
from .policy import Intention, Observation, SyVLAPolicy
from .query_refresher import Call, QueryRefresher, Sight


class AsyncSyVLAPolicy:
    """A `SyVLAPolicy` whose VLM runs in the background.

    Args:
        policy: Its `think` says whether thoughts are generated in the background.
        max_query_age: Seconds; older query states are waited for. None: never, but for a session's first call and for
            the first one after its instruction changed.
        **options: Further arguments of `QueryRefresher`.
    """

    def __init__(self, policy: SyVLAPolicy, *, max_query_age: float | None = None, **options: Any) -> None:
        self.policy = policy
        self.name, self.chunk_size = policy.name, policy.chunk_size
        self._stream = torch.cuda.Stream() if policy.model.device.type == "cuda" else None
        self.refresher: QueryRefresher[Intention] = QueryRefresher(self._look, max_age=max_query_age, **options)

    def look(self, observation: Observation, instruction: str, session: str) -> Call[Intention]:
        """Leaves an observation for the VLM; when the result is `ready`, `predict` answers it without waiting.

        Args:
            session: Whose observation it is; a new episode should have a new name, or `forget` the old one's.
        """
        return self.refresher.leave(Sight(session, observation, instruction))

    def predict(
        self,
        observations: Sequence[Observation],
        looks: Sequence[Call[Intention]],
        *,
        seeds: Sequence[int],
        previous: Sequence[PreviousChunk | None] | None = None,
        num_steps: int | None = None,
    ) -> ActionChunks:
        """As `SyVLAPolicy.predict`; `query_ages` says how old the query states of each answer are.

        Args:
            looks: What `look` returned for these observations; waited for where they are not ready.
        """
        newest = [self.refresher.take(look) for look in looks]
        intention = join_intentions([states for states, _ in newest])
        actions = self.policy.denoise(observations, intention, seeds=seeds, previous=previous, num_steps=num_steps)
        return ActionChunks(actions, intention.thoughts, query_ages=[age for _, age in newest])

    def forget(self, session: str) -> None:
        """A session's episode is over."""
        self.refresher.drop(session)

    def close(self) -> None:
        """Ends the background thread."""
        self.refresher.close()

    def _look(self, sights: Sequence[Sight]) -> list[Intention]:
        # On a GPU a stream of its own lets the expert's short kernels run between those of the VLM.
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            intention = self.policy.intention(
                [sight.observation for sight in sights], [str(sight.basis) for sight in sights]
            )
        if self._stream is not None:
            self._stream.synchronize()
        return split_intention(intention)


def split_intention(intention: Intention) -> list[Intention]:
    """One intention per sample of a batch."""
    return [
        Intention(
            intention.query_states[row : row + 1],
            None if intention.mask is None else intention.mask[row : row + 1],
            None if intention.thoughts is None else intention.thoughts[row : row + 1],
        )
        for row in range(len(intention.query_states))
    ]


def join_intentions(intentions: Sequence[Intention]) -> Intention:
    """The inverse of `split_intention`; states of unequal number are padded and masked."""
    longest = max(one.query_states.shape[1] for one in intentions)
    states = torch.cat([F.pad(one.query_states, (0, 0, 0, longest - one.query_states.shape[1])) for one in intentions])
    mask = None
    if any(one.mask is not None or one.query_states.shape[1] < longest for one in intentions):
        own = [torch.ones_like(one.query_states[..., 0], dtype=torch.bool) for one in intentions]
        masks = [whole if one.mask is None else one.mask for one, whole in zip(intentions, own, strict=True)]
        mask = torch.cat([F.pad(one, (0, longest - one.shape[1]), value=False) for one in masks])
    thoughts = [text for one in intentions for text in one.thoughts or [""]]
    return Intention(states, mask, None if all(one.thoughts is None for one in intentions) else thoughts)
