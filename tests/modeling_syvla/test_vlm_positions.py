"""Our mRoPE positions are Qwen2.5-VL's own, and every installed transformers ends up with them."""

import copy

import pytest
import torch

from syvla.modeling_syvla.vlm_positions import image_rope_index, use_right_image_positions


def batch(seed):
    """Rows of text and images of different sizes, padded on either side."""
    generator = torch.Generator().manual_seed(seed)
    rows, grids = [], []
    for _ in range(3):
        types = [0] * int(torch.randint(1, 5, (), generator=generator))
        for _ in range(int(torch.randint(0, 4, (), generator=generator))):
            height, width = (int(n) * 2 for n in torch.randint(1, 4, (2,), generator=generator))
            grids.append([1, height, width])
            types += [1] * (height * width // 4) + [0] * int(torch.randint(1, 4, (), generator=generator))
        rows.append(types)
    length = max(map(len, rows))
    types, mask = torch.zeros(3, length, dtype=torch.long), torch.zeros(3, length, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(length - len(row), length) if i % 2 else slice(0, len(row))
        types[i, where], mask[i, where] = torch.tensor(row), 1
    grid = torch.tensor(grids) if grids else None
    return {"input_ids": types + 5, "mm_token_type_ids": types, "image_grid_thw": grid, "attention_mask": mask}


@pytest.mark.parametrize("seed", range(8))
def test_positions_are_those_the_model_uses(tiny_model, seed):
    inputs = batch(seed)
    ours, theirs = image_rope_index(2, **inputs), tiny_model.vlm.model.get_rope_index(**inputs)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def test_two_images_by_hand():
    """Text 0 1, an image of 2 x 3 tokens from 2, text from 2 + 3, a 1 x 1 image, text."""
    types = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 0]])
    grids = torch.tensor([[1, 4, 6], [1, 2, 2]])
    positions, offset = image_rope_index(2, types, types, grids)
    assert positions[:, 0].tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7],
    ]
    assert offset.tolist() == [[8 - 11]]


def test_a_faulty_release_is_put_right_and_a_right_one_left_alone(tiny_model):
    vlm = tiny_model.vlm
    before = vlm.model.get_rope_index
    use_right_image_positions(vlm)
    assert vlm.model.get_rope_index == before
    faulty = copy.deepcopy(vlm)
    faulty.model.get_rope_index = lambda **kwargs: tuple(2 * x for x in image_rope_index(2, **kwargs))
    use_right_image_positions(faulty)
    inputs = batch(0)
    assert torch.equal(faulty.model.get_rope_index(**inputs)[0], image_rope_index(2, **inputs)[0])


def test_videos_are_refused():
    types = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="video_grid_thw"):
        image_rope_index(2, types, types, video_grid_thw=torch.ones(1, 3))
