"""Arguments of a forward that nobody reads are refused by name, instead of changing nothing in silence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def require_read(
    model: str, given: Mapping[str, Any], read: Collection[str] = (), refused: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Further arguments of a forward, once it is clear that all of them act.

    None, and False for an argument of `refused`, ask for nothing and are dropped: PEFT and TRL pass all names that they
    know.

    Args:
        model: Name of the class, for the message.
        given: The `**kwargs` of the forward.
        read: Names that it reads.
        refused: Known names that it cannot honor -> why, and what to do instead.

    Raises:
        TypeError: If a name is not read.
        ValueError: If a name is refused.
    """
    refused = refused or {}
    kept = {}
    for name, value in given.items():
        if value is None or (name in refused and value is False):
            continue
        if name in refused:
            raise ValueError(f"{name}: {model} does not take it: {refused[name]}")
        if name not in read:
            raise TypeError(f"{model}.forward: unknown argument {name!r}")
        kept[name] = value
    return kept
