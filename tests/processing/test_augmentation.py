"""Augmentation: what it changes, what it leaves, and that a change depends on seed and key alone."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from syvla.processing.augmentation import (
    PRESETS,
    Augmentation,
    AugmentationSettings,
    augmentation_settings,
    color_matrix,
    crop_and_turn,
)
from syvla.processing.mixture import MixtureBatchSampler, MixtureDataset
from syvla.processing.normalization import normalize

COLOR = replace(PRESETS["default"], crop=1.0, rotation=0.0)


@pytest.fixture
def augmentation(tiny_processor):
    """`augmentation(settings, seed=0)` with the statistics of the tiny processor's robots."""
    return lambda settings, seed=0: Augmentation(settings, tiny_processor.embodiments, seed)


def smooth_image(seed, size=64):
    """An image without detail finer than a few pixels, so that interpolation hardly changes it."""
    coarse = np.random.default_rng(seed).integers(40, 200, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def test_a_change_depends_on_seed_and_key_alone(augmentation, make_item):
    item = make_item(1)
    first = augmentation(PRESETS["strong"], 5)(item, (0, 7, 2))
    again = augmentation(PRESETS["strong"], 5)(item, (0, 7, 2))
    assert first["images"].keys() == again["images"].keys()
    assert all(np.array_equal(first["images"][view], again["images"][view]) for view in first["images"])
    assert np.array_equal(first["seen_state"], again["seen_state"])
    for seed, key in ((6, (0, 7, 2)), (5, (1, 7, 2)), (5, (0, 8, 2)), (5, (0, 7, 3))):
        other = augmentation(PRESETS["default"], seed)(item, key)
        same = augmentation(PRESETS["default"], 5)(item, (0, 7, 2))
        assert not np.array_equal(other["images"]["center"], same["images"]["center"])


def test_recorded_item_stays_as_it_is(augmentation, make_item):
    item, kept = make_item(1), make_item(1)
    changed = augmentation(PRESETS["strong"])(item, (0, 0, 0))
    assert all(np.array_equal(item["images"][view], kept["images"][view]) for view in kept["images"])
    assert np.array_equal(item["state"], kept["state"])
    assert np.array_equal(changed["actions"], kept["actions"])
    assert np.array_equal(changed["state"], kept["state"])


def test_every_view_goes_through_the_same_colors_and_a_crop_of_its_own(augmentation, make_item):
    image = smooth_image(3)
    item = make_item(0, images={"center": image, "left_wrist": image, "side": image})
    changed = augmentation(COLOR)(item, (0, 0, 0))["images"]
    assert np.array_equal(changed["center"], changed["left_wrist"])
    assert not np.array_equal(changed["center"], image)
    moved = augmentation(AugmentationSettings(crop=0.8))(item, (0, 0, 0))["images"]
    assert np.array_equal(moved["left_wrist"], image)  # moves with the gripper
    assert not np.array_equal(moved["center"], moved["side"])
    fixed = augmentation(AugmentationSettings(crop=0.8, fixed_views=("center",)))(item, (0, 0, 0))["images"]
    assert np.array_equal(fixed["center"], image)
    assert not np.array_equal(fixed["left_wrist"], image)


def test_crop_is_the_crop_that_pillow_cuts_and_resizes():
    image = Image.fromarray(smooth_image(5))
    warped = image.transform(
        (64, 64), Image.Transform.AFFINE, crop_and_turn((64, 64), 0.75, (1.0, 0.0), 0.0), Image.Resampling.BILINEAR
    )
    cut = image.crop((16, 0, 64, 48)).resize((64, 64), Image.Resampling.BILINEAR)
    inner = (slice(2, -2), slice(2, -2))  # Pillow treats the border of a cut otherwise
    assert np.abs(np.asarray(warped, dtype=int) - np.asarray(cut, dtype=int))[inner].max() <= 2


def test_turn_is_the_turn_of_pillow():
    image = Image.fromarray(smooth_image(6))
    angle = 10.0
    warped = image.transform(
        (64, 64),
        Image.Transform.AFFINE,
        crop_and_turn((64, 64), 1.0, (0.5, 0.5), np.deg2rad(angle)),
        Image.Resampling.BILINEAR,
    )
    turned = image.rotate(angle, Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(warped, dtype=int) - np.asarray(turned, dtype=int)).max() <= 1


def test_colors_have_the_values_of_their_definitions():
    color = np.array([180.0, 90.0, 60.0])

    def result(**change):
        matrix = color_matrix(**{"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0, **change})
        return matrix[:, :3] @ color + matrix[:, 3]

    assert result() == pytest.approx(color)
    assert result(brightness=0.5) == pytest.approx(color / 2)
    assert result(contrast=0.5) == pytest.approx((color + 127.5) / 2)
    luma = 0.299 * 180 + 0.587 * 90 + 0.114 * 60
    assert result(saturation=0.0) == pytest.approx([luma] * 3, abs=0.1)
    turned = result(hue=1 / 12)
    assert turned @ [0.299, 0.587, 0.114] == pytest.approx(luma, abs=0.1)
    difference = colorsys.rgb_to_hsv(*(turned / 255))[0] - colorsys.rgb_to_hsv(*(color / 255))[0]
    assert abs((difference + 0.5) % 1 - 0.5) == pytest.approx(
        1 / 12, abs=0.04
    )  # the color circles of YIQ and HSV differ a little
    assert result(hue=1.0) == pytest.approx(color)


def test_a_dropped_view_is_masked_for_the_expert_and_unknown_to_the_vlm(augmentation, make_item, tiny_processor):
    drop = augmentation(AugmentationSettings(view_dropout=0.5))
    changed = [drop(make_item(1), (0, index, 0)) for index in range(200)]
    present = np.array([[view in item["images"] for view in tiny_processor.views] for item in changed])
    assert present.any(1).all()
    assert present.mean() == pytest.approx(0.5 + 1 / 8, abs=0.06)  # an item that would lose all keeps all
    item = next(item for item in changed if len(item["images"]) == 1)
    batch = tiny_processor.collate([item])
    assert batch["expert_view_mask"].sum() == 1
    assert len(batch["image_grid_thw"]) == 1


def test_vlm_and_expert_read_the_augmented_pixels(augmentation, make_item, tiny_processor):
    item = make_item(2)
    changed = augmentation(PRESETS["default"])(item, (0, 0, 0))
    given = tiny_processor.collate([{**item, "images": changed["images"]}])
    batch, plain = tiny_processor.collate([changed]), tiny_processor.collate([item])
    for key in ("pixel_values", "expert_pixel_values"):
        assert torch.equal(batch[key], given[key])
        assert not torch.equal(batch[key], plain[key])


def test_state_noise_has_its_size_in_normalized_units(augmentation, make_item, tiny_processor):
    noisy = augmentation(AugmentationSettings(state_noise=0.2))
    entry = tiny_processor.embodiments["arm"]
    item = make_item(1, "arm")
    seen = np.stack([noisy(item, (0, index, 0))["seen_state"] for index in range(800)])
    difference = normalize(seen, entry["statistics"]["state"], "mean_std") - normalize(
        item["state"], entry["statistics"]["state"], "mean_std"
    )
    assert difference.std(0) == pytest.approx([0.2] * 3, rel=0.1)
    assert difference.mean(0) == pytest.approx([0.0] * 3, abs=0.03)


def test_dropped_state_is_zero_for_the_model_and_leaves_delta_actions(augmentation, make_item, tiny_processor):
    statistics = {kind: {"mean": [0.5] * 2, "std": [2.0] * 2} for kind in ("state", "action")}
    tiny_processor.set_embodiment("delta", statistics, delta_actions=[0, 1])
    item = make_item(1, "arm")
    item = {**item, "embodiment": "delta", "state": item["state"][:2]}
    changed = augmentation(AugmentationSettings(state_dropout=1.0))(item, (0, 0, 0))
    plain, batch = tiny_processor.collate([item]), tiny_processor.collate([changed])
    assert batch["state"].abs().max() < 1e-6
    assert plain["state"].abs().max() > 0.01
    assert torch.equal(batch["actions"], plain["actions"])


class Items(list):
    """A map-style dataset that can be sent to a worker."""


@pytest.mark.parametrize("workers", [0, 2])
def test_mixture_augments_by_pass_and_whatever_the_workers(augmentation, make_item, workers):
    items = Items(make_item(seed) for seed in range(3))
    chats = Items([{"messages": [], "images": [smooth_image(1)]}])
    change = augmentation(COLOR)
    data = MixtureDataset([items], [chats], change)
    sampler = MixtureBatchSampler([3], [1], batch_size=2, multimodal_share=0.5, batches_per_epoch=6, with_pass=True)
    indices = [index for batch in sampler for index in batch]
    assert sorted(index for index in indices if index[0] == 0) == [(0, i, p) for i in range(3) for p in range(2)]
    sampler.set_epoch(0)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers, collate_fn=list)
    loaded = [item for batch in loader for item in batch]
    for (source, position, number), item in zip(indices, loaded, strict=True):
        if source == 0:
            expected = change(items[position], (0, position, number))
            assert np.array_equal(item["images"]["center"], expected["images"]["center"])
        else:
            assert item["images"][0] is chats[0]["images"][0] or np.array_equal(item["images"][0], smooth_image(1))


def test_a_resumed_stream_has_the_same_passes():
    whole = MixtureBatchSampler([5], batch_size=2, multimodal_share=0.0, with_pass=True, batches_per_epoch=10)
    batches = list(whole)
    resumed = MixtureBatchSampler([5], batch_size=2, multimodal_share=0.0, with_pass=True, batches_per_epoch=4)
    resumed.set_epoch(1)
    assert list(resumed) == batches[4:8]


@pytest.mark.parametrize(
    ("strength", "details", "message"),
    [
        ("hard", {}, "expected one of none, light, default, strong, got 'hard'"),
        ("default", {"rotaton": 1}, "unknown key 'rotaton'; did you mean 'rotation'?"),
        ("default", {"horizontal_flip": 0.5}, "images are never mirrored"),
        ("default", {"crop": 1.5}, r"crop: expected a number in \[0.1, 1.0\], got 1.5"),
        ("default", {"hue": "a"}, "hue: expected a number"),
        ("default", {"fixed_views": "center"}, "fixed_views: expected a list of views"),
        ("none", {"rotation": 1}, "has no effect with augmentation=none"),
    ],
)
def test_wrong_settings_are_refused_by_name(strength, details, message):
    with pytest.raises(ValueError, match=message):
        augmentation_settings(strength, details)


def test_none_is_none_and_details_change_single_fields():
    assert augmentation_settings("none") is None
    assert augmentation_settings("default", {"rotation": 0}) == replace(PRESETS["default"], rotation=0)
