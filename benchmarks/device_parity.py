"""Whether a device computes what the CPU computes: `python -m benchmarks.device_parity [--device cuda]`.

One model at the paper's proportions takes the same batch in float32 on both: losses, the mask of Intention Decoupling, the
gradient of every part, and a chunk of actions out of the same noise. Differences are relative to the largest number that they
stand beside. TF32 is off, since it keeps 10 bits of 23.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.machine_bound import describe_device, device_name
from benchmarks.reporting import print_table, write_section
from benchmarks.scaled_model import make_batch, scaled_config
from syvla.modeling_syvla import SyVLAModel

TOLERANCE = 1e-3
"""Ours: float32 sums in another order differ by about 1e-5 here; a wrong kernel or mask by far more."""

PARTS = (
    "vlm.model.language_model",
    "vlm.model.visual",
    "action_queries",
    "adapter",
    "expert.layers",
    "expert.embodiments",
)


def results_on(device: str, width: int, depth: int) -> dict[str, torch.Tensor]:
    """All that is compared, by name, on the CPU."""
    torch.manual_seed(0)
    config = scaled_config(width, depth)
    model = SyVLAModel(config).train()
    batch = make_batch(config, 3, 1)
    generator = torch.Generator().manual_seed(1)
    batch["noise"] = torch.randn(batch["actions"].shape, generator=generator)
    batch["timestep"] = torch.rand(len(batch["actions"]), generator=generator)
    model.to(device)
    moved = {name: value.to(device) for name, value in batch.items()}
    output: Any = model(**moved)
    output.loss.backward()
    results = {
        "query states": output.query_states,
        "language loss": output.lm_loss,
        "action loss": output.action_loss_per_sample,
        "decoupling mask": output.query_mask.float(),
    }
    for part in PARTS:
        weights = model.get_submodule(part).parameters()
        results[f"gradient of {part}"] = torch.cat([w.grad.flatten() for w in weights if w.grad is not None])
    observed = {name: moved[name][:3] for name in ("input_ids", "attention_mask", "state", "embodiment_ids")}
    observed["expert_pixel_values"] = moved["expert_pixel_values"][:3]
    images = int(moved["image_grid_thw"][:9].prod(-1).sum())
    chunk = model.eval().predict_actions(
        **observed,
        pixel_values=moved["pixel_values"][:images],
        image_grid_thw=moved["image_grid_thw"][:9],
        noise=moved["noise"][:3],
    )
    results["action chunk"] = chunk.actions
    return {name: value.detach().float().cpu() for name, value in results.items()}


def compare(device: str, width: int, depth: int) -> dict[str, float]:
    """Largest difference from the CPU of each result, relative to its largest number."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    expected, got = results_on("cpu", width, depth), results_on(device, width, depth)
    return {
        name: float((got[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
        for name, value in expected.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=4, help="divisor of the paper's widths")
    parser.add_argument("--depth", type=int, default=6, help="divisor of the paper's depths")
    options = parser.parse_args(argv)
    differences = compare(options.device, options.width, options.depth)
    print_table(["result", "difference"], [[name, f"{value:.1e}"] for name, value in differences.items()])
    section = {"width": options.width, "depth": options.depth, "differences": differences}
    print(write_section("device_parity", device_name(options.device), section, describe_device(options.device)))
    beyond = [name for name, value in differences.items() if not value <= TOLERANCE]
    if beyond:
        raise SystemExit(f"{options.device}: {', '.join(beyond)} differ from the CPU's by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
