"""What training adds to the processor's batches, and whether the VLM sees their padding."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from syvla.modeling_syvla.padding_free import padding_free_problem, set_padding_free

logger = logging.getLogger(__name__)


class TrainingCollator:
    """Collates items of a [`MixtureDataset`] and keeps the number of the dataset that each comes from.

    Args:
        collate: `SyVLAProcessor.collate`.
        length_bucket: Sequences are padded to a multiple of this many tokens, so that few different shapes occur: compiled
            kernels and cached memory are then used again. Ours. Samples are not sorted by length: that would draw samples
            of one kind together, and the share of each batch would no longer be exact.
    """

    def __init__(self, collate: Callable[..., Any], length_bucket: int = 1) -> None:
        self.collate, self.length_bucket = collate, length_bucket

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> Any:
        """The processor's batch; where the items have a source, with `source_ids` int64 (B,) and `rows`, B names."""
        for item in items:
            if "messages" not in item and item.get("actions") is None:
                thought = " but a thought, which alone trains no action" if item.get("thought") else ""
                raise ValueError(
                    f"actions: missing in a robot sample ({row_name(item) or item.get('text')!r}), which has none{thought}; "
                    "give actions (T, D_action), or make a chat of it: {'messages': ..., 'images': ...}"
                )
        batch = self.collate(items, length_bucket=self.length_bucket)
        if all("source" in item for item in items):
            batch["source_ids"] = torch.tensor([item["source"] for item in items])
            batch["rows"] = [row_name(item) for item in items]
        return batch


def row_name(item: Mapping[str, Any]) -> str:
    """Where a sample comes from, as far as it says: episode and frame, or row."""
    keys = (("episode_index", "episode"), ("frame_index", "frame"), ("row", "row"), ("index", "row"))
    parts = {text: item[key] for key, text in keys if item.get(key) is not None}
    if "episode" in parts:
        parts.pop("row", None)
    return ", ".join(f"{text} {value}" for text, value in parts.items())


def choose_padding_free(policy: Any, wanted: bool | None, *, length_bucket: int = 1, compiled: bool = False) -> bool:
    """Run the policy's VLM without padding tokens where that is possible; see `syvla.modeling_syvla.padding_free`.

    Args:
        policy: A [`SyVLAModel`].
        wanted: True: refuse what cannot be done; None: do it if it can be done, else warn once; False: pad.
        length_bucket, compiled: Settings that need sequences of few lengths.

    Returns:
        Whether padding is dropped.

    Raises:
        ValueError: If it is wanted and impossible.
    """
    problem = padding_free_problem(policy)
    if length_bucket > 1:
        problem = f"length_bucket={length_bucket} pads to a few lengths, which the tokens of whole batches do not have"
    elif compiled:
        problem = "torch_compile needs shapes that come again, and the number of real tokens is new in every batch"
    if wanted and problem:
        raise ValueError(f"padding_free: {problem}; set padding_free to false, or change the other setting")
    if wanted is None and problem:
        logger.warning("batches are padded: %s", problem)
    enabled = wanted is not False and problem is None
    set_padding_free(policy, enabled)
    return enabled
