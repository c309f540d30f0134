"""Memory of a benchmark's process: its peak during a call, and what becomes of what is freed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names of glibc's malloc.h


@dataclass(frozen=True)
class Memory:
    """Bytes in use before a call and at most during it: of the GPU's allocator, or of the process."""

    before: int
    peak: int


def measure_memory(work: Callable[[], Any], device: str) -> Memory | None:
    """None where the system does not say."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return Memory(before, torch.cuda.max_memory_allocated(device))
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what an earlier call has freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
        before = _process_bytes("VmRSS")
        work()
        return Memory(before, _process_bytes("VmHWM"))
    except (OSError, AttributeError, LookupError):
        return None


def _process_bytes(entry: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(entry)


def keep_freed_memory() -> None:
    """Let the C library reuse what a step has freed, as GPU allocators do.

    Otherwise every large tensor is mapped anew and its pages are cleared by the system, which takes about half of the time
    of a small model's step and varies from step to step.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError):  # another C library
        return
