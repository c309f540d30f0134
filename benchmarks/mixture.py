"""The mixture sampler at the paper's scale: `python -m benchmarks.mixture`.

40 million robot frames (450 hours at 25 Hz, paper, appendix A) in several datasets, mixed with 35% of five multi-modal
datasets in batches of 512. Prints the memory that building the sampler takes, the time of one batch and of going to the
middle of a run, and the largest error of the share over any prefix, for one process and for one of 32.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from fractions import Fraction

from benchmarks.reporting import print_table, write_result
from syvla.processing.mixture import MixtureBatchSampler

ROBOT_SHARES = (0.45, 0.30, 0.15, 0.06, 0.04)
MULTIMODAL_SIZES = (591_753, 443_757, 2_376_222, 79_000, 7_000_000)
"""About the sizes of COCO captions, VQA-v2, PixMo-Points, PixMo-Point-Explanations and Cambrian-7M."""


def share_error(batches: list[list[tuple[int, int]]], robots: int, share: float) -> float:
    """Largest distance of the number of multi-modal samples from share x samples, over all prefixes of whole batches."""
    drawn = chats = 0
    worst = Fraction(0)
    for batch in batches:
        drawn += len(batch)
        chats += sum(source >= robots for source, _ in batch)
        worst = max(worst, abs(chats - Fraction(share).limit_denominator(10**6) * drawn))
    return float(worst)


def measure(frames: int, batch: int, world_size: int, batches: int) -> dict[str, float]:
    """Figures of rank 0 of `world_size` ranks that share a global batch."""
    sizes = [int(share * frames) for share in ROBOT_SHARES]
    tracemalloc.start()
    options = {"batch_size": batch // world_size, "multimodal_share": 0.35, "world_size": world_size}
    sampler = MixtureBatchSampler(sizes, MULTIMODAL_SIZES, **options)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    seconds, drawn = [], []
    iterator = iter(sampler)
    for _ in range(batches):
        start = time.perf_counter()
        drawn.append(next(iterator))
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    fresh = MixtureBatchSampler(sizes, MULTIMODAL_SIZES, **options)
    fresh.load_state_dict(sampler.state_dict())
    resume = time.perf_counter() - start
    return {
        "build_peak_mib": round(peak, 3),
        "batch_512_ms": round(1e3 * statistics.median(seconds), 3),
        "batch_512_p95_ms": round(1e3 * sorted(seconds)[int(0.95 * len(seconds))], 3),
        "resume_ms": round(1e3 * resume, 3),
        "max_share_error_samples": share_error(drawn, len(sizes), 0.35),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=40_000_000)
    parser.add_argument("--batch", type=int, default=512, help="global batch size")
    parser.add_argument("--batches", type=int, default=300)
    options = parser.parse_args()
    result = {n: measure(options.frames, options.batch, n, options.batches) for n in (1, 32)}
    names = list(result[1])
    print_table(["", "1 process", "1 of 32"], [[name, *(result[n][name] for n in (1, 32))] for name in names])
    worst = {name: max(result[n][name] for n in (1, 32)) for name in names}
    print(write_result("mixture", {**worst, "by_world_size": result, "frames": options.frames, "batch": options.batch}))


if __name__ == "__main__":
    main()
