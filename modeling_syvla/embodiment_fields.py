"""The robots that a configuration names, with their dimensions and ids."""

from __future__ import annotations

import re

USABLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""Names of robots and of views: the first become a part of parameter names, the second stand in the prompt."""

_RESERVED_NAMES = frozenset(("keys", "values", "items", "pop", "update", "clear", "type", "half", "float", "double"))


class EmbodimentsMixin:
    """The robots of a config: name -> `{"id", "state_dim", "action_dim"}`."""

    embodiments: dict[str, dict[str, int]]

    def _set_embodiments(self, embodiments: dict[str, dict[str, int]] | None) -> None:
        self.embodiments = {}
        for name, dims in sorted((embodiments or {}).items(), key=lambda item: item[1].get("id", float("inf"))):
            self._register(name, **dims)

    def _register(self, name: str, state_dim: int, action_dim: int, id: int | None = None) -> None:
        if not USABLE_NAME.fullmatch(name) or name in _RESERVED_NAMES:
            raise ValueError(
                f"embodiments: {name!r} is not a usable name; use letters, digits, '_' and '-' (it becomes part of the "
                "parameter names), for example 'cobot_magic'"
            )
        if state_dim < 1 or action_dim < 1:
            raise ValueError(f"embodiments.{name}: expected positive dimensions, got {state_dim=} {action_dim=}")
        used = {dims["id"] for dims in self.embodiments.values()}
        new_id = max(used, default=-1) + 1 if id is None else id
        if new_id in used:
            raise ValueError(f"embodiments.{name}: id {new_id} is taken; ids must be unique")
        self.embodiments[name] = {"id": new_id, "state_dim": state_dim, "action_dim": action_dim}

    def add_embodiment(self, name: str, state_dim: int, action_dim: int) -> None:
        """Register a further embodiment; ids of the existing ones stay.

        Raises:
            ValueError: If the name is unusable or already taken with other dimensions.
        """
        known = self.embodiments.get(name)
        if known is not None:
            if (known["state_dim"], known["action_dim"]) != (state_dim, action_dim):
                raise ValueError(
                    f"embodiments.{name}: already registered with state_dim={known['state_dim']}, "
                    f"action_dim={known['action_dim']}; got {state_dim=}, {action_dim=}. Choose another name."
                )
            return
        self._register(name, state_dim, action_dim)

    @property
    def max_state_dim(self) -> int:
        return max((e["state_dim"] for e in self.embodiments.values()), default=1)

    @property
    def max_action_dim(self) -> int:
        return max((e["action_dim"] for e in self.embodiments.values()), default=1)
