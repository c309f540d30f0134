"""Cached against uncached denoising of one action chunk: `python -m benchmarks.denoising`.

Cached is what the policy does: prefix and condition once, then the suffix alone per flow step. Uncached recomputes
images, prefix and condition at every step. Same weights, same noise; the largest difference of the actions is printed.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.reporting import interleaved_seconds, print_table, write_result
from benchmarks.scaled_model import make_batch, scaled_config
from syvla.modeling_syvla import SyVLAModel
from syvla.modeling_syvla.expert_inputs import ExpertObservation
from syvla.modeling_syvla.flow_matching import euler_sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="flow steps")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = scaled_config()
    model = SyVLAModel(config).eval()
    batch = make_batch(config, 1)
    noise = torch.randn(1, config.chunk_size, config.max_action_dim)
    queries = torch.randn(1, config.num_query_tokens, config.get_text_config().hidden_size)
    inputs = {key: batch[key] for key in ("state", "embodiment_ids", "expert_pixel_values")}
    observation = ExpertObservation.checked(config, 1, **inputs)

    @torch.no_grad()
    def cached() -> torch.Tensor:
        return model.sample_actions(queries, observation, noise=noise, num_steps=options.steps)

    @torch.no_grad()
    def uncached() -> torch.Tensor:
        def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return model.expert.predict_velocity(x, t, model.encode_expert_context(queries, observation))

        return euler_sample(velocity, noise, options.steps)

    difference = (cached() - uncached()).abs().max().item()
    seconds = interleaved_seconds({"cached": cached, "uncached": uncached}, options.repeats)
    rows = [[name, value * 1e3, seconds["uncached"] / value] for name, value in seconds.items()]
    print_table(["denoising", "ms/chunk", "speed-up"], rows)
    print(f"largest difference of the actions: {difference:.1e}")
    result = {"speed_up": seconds["uncached"] / seconds["cached"], "max_difference": difference, "seconds": seconds}
    print(write_result("denoising", {**result, "flow_steps": options.steps}))


if __name__ == "__main__":
    main()
