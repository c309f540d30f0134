"""Cost of Intention Decoupling per training step: `python -m benchmarks.decoupling`.

Runs forward and backward of a scaled-down model whose FLOPs split between VLM and expert about as they do at the paper's
size (3 views of 224 px, head_dim 64; the ratio is printed) and compares: no decoupling, decoupling, and decoupling with
`cross_attention_scope="suffix"`, whose prefix both passes share. FLOPs are counted by torch, seconds are measured.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.reporting import FlopCount, interleaved_seconds, print_table, write_result
from modeling_syvla import SyVLAConfig, SyVLAModel


def scaled_config(**overrides: Any) -> SyVLAConfig:
    """About 1/8 of the paper's width and a third of its depth, same token counts."""
    vlm = SyVLAConfig.tiny().vlm_config.to_dict()
    vlm["text_config"].pop("layer_types", None)
    vlm["text_config"].update(
        hidden_size=320,
        intermediate_size=1728,
        num_hidden_layers=9,
        num_attention_heads=10,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    )
    vlm["vision_config"].update(
        depth=8,
        hidden_size=160,
        intermediate_size=432,
        num_heads=4,
        out_hidden_size=320,
        fullatt_block_indexes=[1, 3, 5, 7],
        window_size=112,
        patch_size=14,
    )
    return SyVLAConfig.tiny(
        vlm_config=vlm,
        expert_config={
            "hidden_size": 176,
            "num_hidden_layers": 5,
            "num_attention_heads": 8,
            "head_dim": 32,
            **overrides,
        },
        expert_vision_config={
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 224,
            "patch_size": 16,
        },
        num_query_tokens=20,
        chunk_size=50,
    )


def make_batch(config: SyVLAConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Random robot samples: 3 views of 224 px, 40 text tokens, 20 queries."""
    generator = torch.Generator().manual_seed(0)
    vlm = config.vlm_config
    merged = (224 // vlm.vision_config.patch_size // 2) ** 2
    view = [vlm.vision_start_token_id, *[vlm.image_token_id] * merged, vlm.vision_end_token_id]
    row = [*view * 3, *range(40), *[config.query_token_id] * config.num_query_tokens]
    grid = 224 // vlm.vision_config.patch_size
    pixels = vlm.vision_config.patch_size**2 * 3 * vlm.vision_config.temporal_patch_size
    return {
        "input_ids": torch.tensor([row] * batch_size),
        "pixel_values": torch.randn(batch_size * 3 * grid * grid, pixels, generator=generator),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * (3 * batch_size)),
        "state": torch.randn(batch_size, 14, generator=generator),
        "embodiment_ids": torch.zeros(batch_size, dtype=torch.long),
        "actions": torch.randn(batch_size, config.chunk_size, 14, generator=generator),
        "expert_pixel_values": torch.randn(batch_size, 3, 3, 224, 224, generator=generator),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    models, flops = {}, {}
    for name, decoupling, scope in (
        ("off", False, "all"),
        ("on", True, "all"),
        ("off, suffix scope", False, "suffix"),
        ("on, suffix scope", True, "suffix"),
    ):
        torch.manual_seed(0)
        config = scaled_config(cross_attention_scope=scope)
        config.intention_decoupling = decoupling
        models[name] = SyVLAModel(config).train()
    batch = make_batch(config, options.batch_size)

    def step(model: SyVLAModel) -> None:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()

    for name, model in models.items():
        with FlopCount() as counter:
            step(model)
        flops[name] = counter.total
    with FlopCount() as counter, torch.no_grad():
        models["off"].encode(batch["input_ids"], None, None, batch["pixel_values"], batch["image_grid_thw"])
    vlm_forward = counter.total
    with FlopCount() as counter, torch.no_grad():
        models["off"](**batch)
    ratio = vlm_forward / (counter.total - vlm_forward)
    seconds = interleaved_seconds({n: lambda m=m: step(m) for n, m in models.items()}, options.repeats)
    base = {"on": "off", "on, suffix scope": "off, suffix scope"}
    rows = [
        [n, flops[n] / 1e9, flops[n] / flops[base.get(n, n)], seconds[n], seconds[n] / seconds[base.get(n, n)]]
        for n in models
    ]
    print(f"VLM : expert forward FLOPs = {ratio:.2f} : 1")
    print_table(["decoupling", "GFLOP/step", "x counted", "s/step", "x measured"], rows)
    path = write_result(
        "decoupling",
        {
            "vlm_to_expert_flops": ratio,
            "counted_ratio": flops["on"] / flops["off"],
            "measured_ratio": seconds["on"] / seconds["off"],
            "counted_ratio_suffix": flops["on, suffix scope"] / flops["off, suffix scope"],
            "measured_ratio_suffix": seconds["on, suffix scope"] / seconds["off, suffix scope"],
            "seconds": seconds,
        },
    )
    print(path)


if __name__ == "__main__":
    main()
