"""What every configuration of ours refuses: another model's entries, and names that are nearly a field's."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any, ClassVar

from transformers import PreTrainedConfig


class OwnModelTypeMixin:
    """A configuration that does not read another model's."""

    model_type: ClassVar[str]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As [`PreTrainedConfig.from_dict`].

        Raises:
            ValueError: If the entries are another model's, which the base class would take with a warning.
        """
        got = config_dict.get("model_type", cls.model_type)
        if got != cls.model_type:
            raise ValueError(
                f"model_type: expected {cls.model_type!r} for {cls.__name__}, got {got!r}; load the checkpoint with the "
                "Auto classes of transformers, such as AutoModelForImageTextToText for a plain vision-language model"
            )
        cls._refuse_misspelled(kwargs)
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    @classmethod
    def _refuse_misspelled(cls, given: Iterable[str]) -> None:
        """Raise TypeError for a name that is nearly a field's; the base class would keep it beside the field, unread.

        Other names are kept: those of the base class, and those that libraries add to a configuration.
        """
        fields = [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "kwargs")]
        for name in given:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.85)
            if near and name not in fields and not hasattr(PreTrainedConfig, name):
                raise TypeError(f"{cls.__name__}: unexpected field {name!r}; did you mean {near[0]!r}?")
