"""Checkpoints keep their image encoder on transformers that nest SigLIP's layers one level deeper."""

import re

import pytest

from syvla.modeling_syvla.pretrained import _nested_image_encoder

ROOT = "expert.vision_tower."


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.patch_embedding.weight",
        "embeddings.position_embedding.weight",
        "encoder.layers.0.self_attn.q_proj.bias",
        "post_layernorm.weight",
        "pre_layrnorm.weight",  # CLIP's own spelling
    ],
)
def test_siglip_and_clip_names_move_one_level_down(name):
    ((pattern, replacement),) = _nested_image_encoder("expert.vision_tower").items()
    assert re.sub(pattern, replacement, ROOT + name) == f"{ROOT}vision_model.{name}"


@pytest.mark.parametrize(
    "name",
    [
        "vision_model.encoder.layers.0.mlp.fc1.weight",
        "embeddings.patch_embeddings.projection.weight",  # ConvNeXt, DINOv2
        "encoder.stages.0.layers.0.conv1.weight",  # BiT, ResNet
        "encoder.layer.0.norm1.weight",  # DINOv2
        "embedder.convolution.weight",
    ],
)
def test_other_encoders_and_nested_names_stay(name):
    ((pattern, replacement),) = _nested_image_encoder("expert.vision_tower").items()
    assert re.sub(pattern, replacement, ROOT + name) == ROOT + name
