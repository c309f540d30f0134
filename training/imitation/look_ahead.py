"""Fetches files of streamed datasets ahead of the trainer's batches."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Sampler

from syvla.processing.mixture import MixtureBatchSampler
from syvla.processing.streaming.prefetch import WINDOW_SHARE, LookAheadBatchSampler


def look_ahead(
    sampler: MixtureBatchSampler, robot_datasets: Sequence[Any], args: Any, resumed_step: int = 0
) -> Sampler[list[tuple[int, ...]]]:
    """The sampler, or one with the same batches that fetches their files; as it is where nothing is streamed.

    Args:
        sampler: Of this process.
        robot_datasets: In the sampler's order.
        args: Training arguments.
        resumed_step: Optimizer steps done before: batches of this pass that were trained on are skipped, and not fetched.
    """
    streamed = {number: d for number, d in enumerate(robot_datasets) if getattr(d, "streamed", False)}
    if not streamed:
        return sampler
    local_processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or args.world_size))
    limit = min(dataset.files.cache.limit for dataset in streamed.values())
    updates = max(1, math.ceil(len(sampler) / args.gradient_accumulation_steps))
    workers = args.dataloader_num_workers
    return LookAheadBatchSampler(
        sampler,
        streamed,
        int(WINDOW_SHARE * limit / local_processes),
        skipped=resumed_step % updates * args.gradient_accumulation_steps,
        in_flight=workers * (args.dataloader_prefetch_factor or 2) if workers else 0,
    )
