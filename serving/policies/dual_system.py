"""Dual-system serving (section 3.1 of the paper): the VLM looks on in the background while the expert keeps acting.

A call does not wait for the VLM. It acts on fresh images, state and the newest query states of its session, and says how
old these are; a bound on the age turns into a wait. See `query_refresher` for sessions and ages. Who answers several
sessions in one thread leaves each observation with `look` first, so that none of them waits for another's VLM.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from syvla.serving.contract.action_chunks import ActionChunks
from syvla.serving.contract.requests import PreviousChunk

from .in_process import Intention, Observation, SyVLAPolicy
from .phase_clock import PhaseClock
from .query_refresher import Call, QueryRefresher, Sight

_KEPT_LOOKS = 1024  # for `new_looks`, whose caller may be slow, or nobody


@dataclass(frozen=True)
class Look:
    """What the VLM made of one observation in the background.

    Attributes:
        intention: Of this one sample.
        seconds: Of the run per phase (`think`, `queries`); one run may serve several sessions.
    """

    intention: Intention
    seconds: Mapping[str, float]


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
        self._new_looks: deque[dict[str, float]] = deque(maxlen=_KEPT_LOOKS)
        self.refresher: QueryRefresher[Look] = QueryRefresher(self._look, max_age=max_query_age, **options)

    def look(self, observation: Observation, instruction: str, session: str) -> Call[Look]:
        """Leaves an observation for the VLM; when the result is `ready`, `predict` answers it without waiting.

        Args:
            session: Whose observation it is; a new episode should have a new name, or `forget` the old one's.
        """
        return self.refresher.leave(Sight(session, observation, instruction))

    def predict(
        self,
        observations: Sequence[Observation],
        looks: Sequence[Call[Look]],
        *,
        seeds: Sequence[int],
        previous: Sequence[PreviousChunk | None] | None = None,
        num_steps: int | None = None,
    ) -> ActionChunks:
        """As `SyVLAPolicy.predict`; `query_ages` says how old the query states of each answer are, `look_seconds` what
        they took.

        Args:
            looks: What `look` returned for these observations; waited for where they are not ready.
        """
        newest = [self.refresher.take(look) for look in looks]
        intention = join_intentions([found.intention for found, _ in newest])
        actions = self.policy.denoise(observations, intention, seeds=seeds, previous=previous, num_steps=num_steps)
        ages, seconds = [age for _, age in newest], [found.seconds for found, _ in newest]
        return ActionChunks(actions, intention.thoughts, query_ages=ages, look_seconds=seconds)

    def new_looks(self) -> list[dict[str, float]]:
        """Seconds per phase of every run of the VLM that has ended since the last call."""
        looks = []
        with suppress(IndexError):  # whoever else takes and adds meanwhile
            while True:
                looks.append(self._new_looks.popleft())
        return looks

    def forget(self, session: str) -> None:
        """A session's episode is over."""
        self.refresher.drop(session)

    def close(self) -> None:
        """Ends the background thread."""
        self.refresher.close()

    def _look(self, sights: Sequence[Sight]) -> list[Look]:
        clock = PhaseClock(self.policy.model.device)
        # On a GPU a stream of its own lets the expert's short kernels run between those of the VLM.
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            intention = self.policy.intention(
                [sight.observation for sight in sights], [str(sight.basis) for sight in sights], streamer=clock
            )
            clock.mark("queries")  # waits for the stream
        self._new_looks.append(clock.seconds)
        return [Look(one, clock.seconds) for one in split_intention(intention)]


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
