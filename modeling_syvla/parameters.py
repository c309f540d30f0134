"""Counts the parameters of a SyVLA configuration on the meta device.

python -m syvla.modeling_syvla.parameters [--tiny]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from .configuration_syvla import SyVLAConfig
from .modeling_syvla import SyVLAModel

# One robot with the paper's shape (two 6-joint arms with grippers), so that one encoder-decoder set is counted.
_DEFAULT_EMBODIMENTS = {"cobot_magic": {"state_dim": 14, "action_dim": 14}}


def count_parameters(config: SyVLAConfig) -> dict[str, int]:
    """Parameters per part, tied ones once. No memory is allocated."""
    with torch.device("meta"):
        model = SyVLAModel(config)
    expert = model.expert
    parts: dict[str, torch.nn.Module] = {"VLM": model.vlm, "Feature Query Tokens": model.action_queries}
    if config.action_head == "l1_regression":
        parts |= {"expert: regression head": expert, "adapter": model.adapter}
    else:
        parts |= _expert_parts(expert)
        parts["adapter"] = model.adapter
    table = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    table["action expert with adapter"] = sum(n for name, n in table.items() if name.startswith(("expert", "adapter")))
    table["total"] = sum(p.numel() for p in model.parameters())
    return table


def _expert_parts(expert: Any) -> dict[str, torch.nn.Module]:
    return {
        "expert: transformer layers": torch.nn.ModuleList([expert.layers, expert.norm]),
        "expert: image encoder": torch.nn.ModuleList([expert.vision_tower, expert.image_proj]),
        "expert: state/action encoders and decoders": expert.embodiments,
        "expert: time, view and position embeddings": torch.nn.ModuleList(
            [expert.time_mlp, expert.view_embedding, expert.action_position_embedding]
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the CPU configuration instead of the paper's")
    config = SyVLAConfig.tiny() if parser.parse_args().tiny else SyVLAConfig(embodiments=_DEFAULT_EMBODIMENTS)
    table = count_parameters(config)
    width = max(map(len, table))
    for name, count in table.items():
        print(f"{name:<{width}}  {count / 1e6:>10.2f} M")


if __name__ == "__main__":
    main()
