"""Image positions of the VLM that do not depend on the installed `transformers`.

Older releases (seen in 5.4) compute Qwen2.5-VL's mRoPE positions with two faults: the temporal position of an image is its
start times `tokens_per_second` (transformers issue 45325), and a batch with more images than tokens per row raises
StopIteration. A checkpoint must mean the same on every version, so the method is replaced where it has the faults.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Any

import torch


def image_rope_index(
    merge: int,
    input_ids: torch.Tensor,
    mm_token_type_ids: torch.Tensor,
    image_grid_thw: torch.Tensor | None = None,
    video_grid_thw: torch.Tensor | None = None,
    second_per_grid_ts: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """mRoPE positions of text and images as Qwen2.5-VL defines them.

    Args:
        merge: Patches per token and side (`spatial_merge_size`).
        input_ids: (B, L).
        mm_token_type_ids: (B, L), 1 at image tokens. Every run of ones is one image.
        image_grid_thw: (images, 3), patches; in the order of the images in the batch.
        video_grid_thw, second_per_grid_ts: Must be None; SyVLA reads images only.
        attention_mask: (B, L); padding gets position 0 and does not count.

    Returns:
        (positions int64 (3, B, L): temporal, height, width; offset of text after the last image to its index, (B, 1)).
    """
    if video_grid_thw is not None:
        raise ValueError("video_grid_thw: SyVLA reads images only; pass frames as images")
    grids = iter([] if image_grid_thw is None else image_grid_thw.tolist())
    positions = torch.zeros(3, *input_ids.shape, dtype=torch.long)
    offsets = []
    for row, types in enumerate(mm_token_type_ids.cpu()):
        real = torch.ones_like(types, dtype=torch.bool) if attention_mask is None else attention_mask[row].cpu().bool()
        parts, start = [], 0
        for is_image, run in groupby(types[real].tolist()):
            if is_image:
                frames, height, width = next(grids)
                sizes = (frames, height // merge, width // merge)
                grid = torch.stack(torch.meshgrid(*map(torch.arange, sizes), indexing="ij")).reshape(3, -1)
                grid[0] = 0  # stills share one moment
                parts.append(grid + start)
                start += max(sizes[1:])
            else:
                length = len(list(run))
                parts.append(torch.arange(length).expand(3, -1) + start)
                start += length
        row_positions = torch.cat(parts, dim=1)
        positions[:, row, real] = row_positions
        offsets.append(row_positions.max() + 1 - row_positions.shape[1])
    return positions.to(input_ids.device), torch.stack(offsets)[:, None].to(input_ids.device)


def use_right_image_positions(vlm: Any) -> None:
    """Replace `get_rope_index` on this VLM if, and only if, it gives wrong positions for images."""
    if vlm.config.model_type != "qwen2_5_vl":
        return
    merge = vlm.config.vision_config.spatial_merge_size
    with torch.device("cpu"):  # models are built on the meta device when they are loaded
        probe = {  # more images than tokens per row, and images that do not begin at 0
            "input_ids": torch.zeros(3, 5, dtype=torch.long),
            "mm_token_type_ids": torch.tensor([[0, 1, 0, 1, 0]] * 3),
            "image_grid_thw": torch.tensor([[1, merge, merge]] * 6),
            "attention_mask": torch.ones(3, 5, dtype=torch.long),
        }
        expected = image_rope_index(merge, **probe)
        try:
            right = all(torch.equal(f, e) for f, e in zip(vlm.model.get_rope_index(**probe), expected, strict=True))
        except (StopIteration, RuntimeError):
            right = False
    if not right:
        vlm.model.get_rope_index = partial(image_rope_index, merge)
