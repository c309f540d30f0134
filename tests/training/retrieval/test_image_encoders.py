"""Encoders of images: equal to the libraries' own results, told apart by their fingerprints."""

import importlib.util
import shutil

import numpy as np
import pytest
import torch

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import build_tiny_processor
from syvla.training.retrieval.image_encoders import ClipEncoder, PolicyEncoder, load_encoder


def pictures(count, size=(24, 32)):
    return list(np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8))


def test_clip_features_are_those_of_the_whole_model(tiny_clip):
    """The vision half alone gives what CLIPModel.get_image_features gives."""
    from transformers import AutoImageProcessor, CLIPModel

    images = pictures(3)
    encoder = load_encoder(f"clip:{tiny_clip}")
    pixels = AutoImageProcessor.from_pretrained(tiny_clip)(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        whole = CLIPModel.from_pretrained(tiny_clip).eval().get_image_features(pixel_values=pixels)
    expected = getattr(whole, "pooler_output", whole).numpy()
    found = encoder.encode(images)
    assert found.shape == (3, encoder.dim)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fingerprint_follows_the_contents_not_the_place(tiny_clip, tmp_path):
    copy = shutil.copytree(tiny_clip, tmp_path / "copy")
    encoder = ClipEncoder(str(tiny_clip))
    assert ClipEncoder(str(copy)).fingerprint() == encoder.fingerprint()
    other = ClipEncoder(str(copy))
    with torch.no_grad():
        next(other._model.parameters()).add_(1e-3)
    assert other.fingerprint() != encoder.fingerprint()


def test_the_policys_own_encoder(tmp_path):
    config = SyVLAConfig.tiny()
    model, processor = SyVLAModel(config).eval(), build_tiny_processor(config)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    images = pictures(2, (32, 32))
    encoder = load_encoder(f"policy:{tmp_path}")
    here = PolicyEncoder(model.expert.vision_tower, processor.expert_image_processor)
    np.testing.assert_allclose(encoder.encode(images), here.encode(images), atol=1e-5)
    assert encoder.fingerprint() == here.fingerprint()
    assert encoder.encode(images).shape == (2, encoder.dim)


@pytest.mark.skipif(not importlib.util.find_spec("open_clip"), reason="open_clip (extra rl) is not installed")
def test_open_clip_features_are_the_librarys(tmp_path):
    import open_clip
    from PIL import Image

    torch.manual_seed(0)
    model, _, prepare = open_clip.create_model_and_transforms("RN50", pretrained=None)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    encoder = load_encoder(f"open_clip:RN50:{tmp_path / 'weights.pt'}")
    images = pictures(2)
    with torch.no_grad():
        expected = model.eval().encode_image(torch.stack([prepare(Image.fromarray(image)) for image in images]))
    np.testing.assert_allclose(encoder.encode(images), expected.numpy(), atol=1e-4)
    assert encoder.encode(images).shape == (2, encoder.dim)


@pytest.mark.skipif(bool(importlib.util.find_spec("open_clip")), reason="open_clip is installed")
def test_open_clip_that_is_missing_names_extra_and_alternative():
    with pytest.raises(ImportError, match=r"pip install 'syvla\[rl\]'.*clip:FOLDER_OR_ID"):
        load_encoder("open_clip:ViT-B-16:datacomp_xl_s13b_b90k")


@pytest.mark.parametrize("spec", ["ViT-B-16", "clip:", "resnet:path", ""])
def test_a_spec_that_is_none_is_refused(spec):
    with pytest.raises(ValueError, match="encoder: expected 'open_clip:NAME:WEIGHTS'"):
        load_encoder(spec)


def test_open_clip_without_weights_is_refused():
    with pytest.raises(ValueError, match="has random weights"):
        load_encoder("open_clip:ViT-B-16")
