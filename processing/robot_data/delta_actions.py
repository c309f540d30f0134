"""Delta actions: targets relative to the state at the start of their chunk, per dimension.

Which dimensions are relative is decided per embodiment and saved with the processor, so that training, evaluation and the
server agree. A gripper command usually stays absolute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

ABSOLUTE = -1
"""Reference of an action dimension that is not relative to the state."""

_MAX_VALUES = 200_000_000


def delta_references(
    chosen: bool | Sequence[str] | Sequence[int] | Mapping[str | int, str | int],
    state_dim: int,
    action_dim: int,
    state_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
) -> list[int]:
    """State dimension that each action dimension is relative to, `ABSOLUTE` where it is absolute.

    Args:
        chosen: True: every action dimension; a list of names or numbers: those dimensions of the action; a mapping of
            dimensions of the action to the dimensions of the state that they are relative to.
        state_dim, action_dim: Numbers of dimensions.
        state_names, action_names: Their names. An action dimension is relative to the state dimension of the same name;
            without names, to the one of the same number.

    Raises:
        ValueError: If a dimension does not exist or has no counterpart in the state.
    """
    references = [ABSOLUTE] * action_dim
    if isinstance(chosen, Mapping):
        for entry, reference in chosen.items():
            dimension = _dimension(entry, action_dim, action_names)
            if references[dimension] != ABSOLUTE:
                raise ValueError(f"delta_actions: dimension {dimension} of the action is given twice")
            references[dimension] = _dimension(reference, state_dim, state_names, "state")
        return references
    if isinstance(chosen, bool):
        wanted: list[int] = list(range(action_dim)) if chosen else []
    else:
        wanted = [_dimension(entry, action_dim, action_names) for entry in chosen]
    for dimension in wanted:
        if state_names and action_names:
            name = action_names[dimension]
            if name not in state_names:
                raise ValueError(
                    f"delta_actions: action dimension {name!r} has no state dimension of that name (the state has "
                    f"{list(state_names)}); list only the dimensions that have one, or map action to state dimensions"
                )
            references[dimension] = list(state_names).index(name)
        elif dimension < state_dim and state_dim == action_dim:
            references[dimension] = dimension
        else:
            raise ValueError(
                f"delta_actions: the dataset names no dimensions, and state and action have {state_dim} and {action_dim}, so "
                "that they cannot be matched by number; give a mapping of action to state dimensions, or keep actions absolute"
            )
    return references


def delta_vectors(
    actions: np.ndarray,
    states: np.ndarray,
    starts: np.ndarray,
    references: Sequence[int],
    chunk_size: int,
    stride: float = 1.0,
) -> Iterator[np.ndarray]:
    """Action vectors as the model is to predict them, for statistics: those of every step of every chunk.

    Args:
        actions: (N, D_action), raw units.
        states: (N, D_state), raw units.
        starts: First frame of each stretch that chunks do not leave, then N.
        references: See `delta_references`.
        chunk_size: Steps of a chunk.
        stride: Frames per step.

    Yields:
        float32 (n, D_action); of very large datasets every k-th step of the chunk only.
    """
    base = np.zeros_like(actions)
    for dimension, reference in enumerate(references):
        if reference != ABSOLUTE:
            base[:, dimension] = states[:, reference]
    last = np.repeat(starts[1:], np.diff(starts)) - 1
    every = max(1, -(-actions.size * chunk_size // _MAX_VALUES))
    for step in range(0, chunk_size, every):
        frames = np.arange(len(actions)) + int(step * stride + 0.5)
        inside = frames <= last
        yield actions[frames[inside]] - base[inside]


def _dimension(entry: str | int, count: int, names: Sequence[str] | None, kind: str = "action") -> int:
    if isinstance(entry, str):
        if names and entry in names:
            return list(names).index(entry)
        if entry.isdecimal():  # keys of JSON objects are texts
            return _dimension(int(entry), count, names, kind)
        raise ValueError(f"delta_actions: {entry!r} is no dimension of the {kind}, which has {list(names or ())}")
    if isinstance(entry, bool) or not 0 <= entry < count:
        raise ValueError(
            f"delta_actions: expected names or numbers from 0 to {count - 1} of the {kind}'s dimensions, got {entry!r}"
        )
    return entry
