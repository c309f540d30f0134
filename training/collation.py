"""What training adds to the processor's batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


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
        """The processor's batch, with `source_ids` int64 (B,) where the items have a source."""
        batch = self.collate(items, length_bucket=self.length_bucket)
        if all("source" in item for item in items):
            batch["source_ids"] = torch.tensor([item["source"] for item in items])
        return batch
