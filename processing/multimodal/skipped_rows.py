"""Counts the rows of a dataset that cannot be used, names them in a file, and ends the run if they are too many."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch

from .sources import CAUSES, BrokenRow

logger = logging.getLogger(__name__)

FEWEST = 100
"""Rows that are read before their share of unusable ones is judged."""


class SkippedRows:
    """The unusable rows of one dataset, in all worker processes together.

    Args:
        name: Of the dataset.
        largest_share: Share of unusable rows among those read above which the run ends.
        log: JSON lines to append to, one per row with `path`, `row`, `cause` and `detail`; None: none.

    Attributes:
        counts: int64 (len(CAUSES),), rows skipped by cause; shared with worker processes.
        read: int64 (1,), rows read, skipped ones included; shared.
    """

    def __init__(self, name: str, largest_share: float = 1.0, log: str | Path | None = None) -> None:
        if not 0 <= largest_share <= 1:
            raise ValueError(f"max_skipped_share: expected a number in [0, 1], got {largest_share}")
        self.name, self.largest_share = name, largest_share
        self.log = None if log is None else Path(log)
        self.counts = torch.zeros(len(CAUSES), dtype=torch.int64).share_memory_()
        self.read = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._logged: set[int] = set()

    def add_usable(self) -> None:
        self.read += 1

    def add(self, error: BrokenRow) -> None:
        """Counts a row.

        Raises:
            ValueError: Too many rows are unusable; lists the causes.
        """
        position = CAUSES.index(error.cause)
        self.counts[position] += 1
        self.read += 1
        count = int(self.counts[position])
        if count in (1, 10, 100) or count % 1000 == 0:
            logger.warning("skipped %d rows so far (%s): %s", count, error.cause, error)
        self._write(error)
        skipped, read = int(self.counts.sum()), int(self.read)
        if read >= FEWEST and skipped > self.largest_share * read:
            named = f"; they are named in {self.log}" if self.log else ""
            raise ValueError(
                f"{self.name}: {skipped} of {read} rows cannot be used ({self.report()}), more than the share of "
                f"max_skipped_share={self.largest_share:g}{named}; repair the dataset, leave it out, or raise the share"
            )

    def report(self) -> dict[str, int]:
        """Rows skipped so far, by cause."""
        return {cause: count for cause, count in zip(CAUSES, self.counts.tolist(), strict=True) if count}

    def restore(self, counts: list[int]) -> None:
        """Adds the counts of a run that is continued; a checkpoint of an earlier version knows fewer causes."""
        self.counts[: len(counts)] += torch.tensor(counts, dtype=torch.int64)

    def _write(self, error: BrokenRow) -> None:
        if self.log is None or error.row in self._logged:
            return
        self._logged.add(error.row)
        entry: dict[str, Any] = {"path": self.name, "row": error.row, "cause": error.cause, "detail": str(error)}
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)  # a line is written whole or not
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_logged": set()}
