"""What a policy answers. Imports nothing but numpy, so that light clients can use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class QueryAge:
    """Age of the query states that a chunk was made from, in dual-system use.

    Attributes:
        seconds: Since the observation that the VLM saw.
        calls: Calls of the session since then; 0: the VLM saw this very observation.
    """

    seconds: float
    calls: int


@dataclass
class ActionChunks:
    """Answer of a policy to B observations.

    Attributes:
        actions: float32 (B, T, D_action), physical units of the environment's `action_names`, one row per control step.
        thoughts: B texts, or None for a policy that did not think.
        seconds: Wall-clock seconds until each of the B answers, if each was asked for alone; otherwise None.
        query_ages: B ages, or None if the VLM saw these very observations.
        vlm_seconds: Beside `query_ages`: seconds per phase (`think`, `queries`) of the VLM's runs that gave the states.
    """

    actions: np.ndarray
    thoughts: list[str] | None = None
    seconds: list[float] | None = None
    query_ages: list[QueryAge] | None = None
    vlm_seconds: list[Mapping[str, float]] | None = None
