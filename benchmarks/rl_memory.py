"""Memory of the paper's eight GPUs of reinforcement learning, counted on the meta device: no weight exists.

    python -m benchmarks.rl_memory                 # data-parallel workers (training/accelerate_configs/ddp.yaml)
    python -m benchmarks.rl_memory --zero2         # gradients, master weights and moments divided (zero2.yaml)

The paper (appendix A, RL infrastructure): GPU 0 is the Scheduler with the acting policy, GPUs 1 to 7 are Workers with policy
and value model. Counted are weights, gradients, AdamW's moments and DDP's buckets; for ZeRO-2 as in Rajbhandari et al., 2020
(weights and gradients in bfloat16, master weights and moments in float32). Activations and CUDA's own memory come on top.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.reporting import RESULTS
from syvla.modeling_syvla import SyVLAConfig, SyVLAModel, SyVLAValueConfig, SyVLAValueModel

GIB = 2**30
WORKERS = 7
CLIP_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
"""OpenAI's ViT-B/16 (openai/clip-vit-base-patch16); the paper says CLIP and does not say which."""


@dataclass(frozen=True)
class Part:
    """A model's bytes on one GPU."""

    name: str
    parameters: int
    bytes: int


def parameters() -> dict[str, int]:
    """Parameters of each model at the paper's size, for one robot of 14 states and actions."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    robot = {"tabletop": {"state_dim": 14, "action_dim": 14}}
    with torch.device("meta"):
        models = {
            "policy": SyVLAModel(SyVLAConfig(embodiments=robot)),
            "value model": SyVLAValueModel(SyVLAValueConfig(embodiments=robot)),
            "CLIP": CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP_VISION, patch_size=16, projection_dim=512)),
        }
    return {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}


def scheduler(counts: dict[str, int]) -> list[Part]:
    """GPU 0: the acting policy in bfloat16, and the next one beside it while they are exchanged."""
    acting = 2 * counts["policy"]
    return [
        Part("acting policy, bfloat16", counts["policy"], acting),
        Part("next policy, while they are exchanged", counts["policy"], acting),
    ]


def worker(counts: dict[str, int], zero2: bool) -> list[Part]:
    """GPUs 1 to 7: both models in training, and CLIP, which only looks for similar samples."""
    parts = []
    for name in ("policy", "value model"):
        count = counts[name]
        if zero2:
            parts.append(Part(f"{name}: weights, bfloat16", count, 2 * count))
            parts.append(Part(f"{name}: gradients, a seventh", count, 2 * count // WORKERS))
            parts.append(Part(f"{name}: master weights, a seventh", count, 4 * count // WORKERS))
            parts.append(Part(f"{name}: AdamW's moments, a seventh", count, 8 * count // WORKERS))
        else:  # float32 under bfloat16 autocast
            parts.append(Part(f"{name}: weights", count, 4 * count))
            parts.append(Part(f"{name}: gradients", count, 4 * count))
            parts.append(Part(f"{name}: AdamW's moments", count, 8 * count))
            parts.append(Part(f"{name}: DDP's buckets", count, 4 * count))
    return [*parts, Part("CLIP: weights, float32", counts["CLIP"], 4 * counts["CLIP"])]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints both kinds of GPU and writes `benchmarks/results/rl_memory.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zero2", action="store_true", help="divide gradients, master weights and moments")
    options = parser.parse_args(argv)
    counts = parameters()
    result = {}
    for title, parts in (("GPU 0", scheduler(counts)), ("GPUs 1 to 7, each", worker(counts, options.zero2))):
        print(title)
        for part in parts:
            print(f"  {part.name:40} {part.parameters:>13,} parameters {part.bytes / GIB:6.1f} GiB")
        total = sum(part.bytes for part in parts)
        print(f"  {'total, without activations':40} {'':13}            {total / GIB:6.1f} GiB")
        result[title] = {"total_gib": round(total / GIB, 2), **{p.name: round(p.bytes / GIB, 3) for p in parts}}
    path = RESULTS / f"rl_memory_{'zero2' if options.zero2 else 'ddp'}.json"
    path.write_text(json.dumps({"parameters": counts, **result}, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
