"""Image encoders whose features say how similar two observations are (paper, appendix A: a CLIP model).

A spec names one in a word: `open_clip:ViT-B-16:path/or/tag` (open_clip with its own weights), `clip:org/name` (a CLIP vision
model of transformers, folder or Hub id) or `policy:path` (the image encoder of a SyVLA checkpoint, where no CLIP model is at
hand; ours).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from syvla.serving.policies.loading import weights_digest

KINDS = ("open_clip", "clip", "policy")


class ImageEncoder(Protocol):
    """Maps images to feature vectors.

    Attributes:
        dim: Length of a vector.
    """

    dim: int

    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images uint8 (H, W, 3) to float32 (n, dim), of any length."""
        ...

    def fingerprint(self) -> str:
        """Digest of weights and preparation: equal for a copied checkpoint, different for any other encoder."""
        ...


def load_encoder(spec: str, device: str | torch.device = "cpu") -> ImageEncoder:
    """Encoder of a spec.

    Raises:
        ValueError: If `spec` names no image encoder.
        ImportError: If it needs open_clip and that is not installed.
    """
    kind, _, rest = spec.partition(":")
    if kind not in KINDS or not rest:
        raise ValueError(
            f"encoder: expected 'open_clip:NAME:WEIGHTS', 'clip:FOLDER_OR_ID' or 'policy:FOLDER_OR_ID', got {spec!r}"
        )
    if kind == "open_clip":
        name, _, weights = rest.partition(":")
        return OpenClipEncoder(name, weights, device)
    return ClipEncoder(rest, device) if kind == "clip" else PolicyEncoder.from_pretrained(rest, device)


class OpenClipEncoder:
    """A model of open_clip.

    Args:
        name: Model name, such as "ViT-B-16".
        weights: File of weights, or a tag of open_clip, such as "datacomp_xl_s13b_b90k".
        device: Where it runs.
    """

    def __init__(self, name: str, weights: str, device: str | torch.device = "cpu") -> None:
        if not weights:
            raise ValueError(
                f"encoder: open_clip:{name} has random weights; add them, as in open_clip:{name}:FILE_OR_TAG"
            )
        try:
            import open_clip
        except ImportError as error:
            raise ImportError(
                f"encoder: open_clip cannot be imported ({error}); pip install 'syvla[rl]' with a torchvision that matches "
                "torch, or use a CLIP model of transformers: clip:FOLDER_OR_ID"
            ) from error
        model, _, self._prepare = open_clip.create_model_and_transforms(name, pretrained=weights, device=device)
        self._model, self._device, self.name = model.eval(), device, name
        self.dim = int(model.visual.output_dim)

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = torch.stack([self._prepare(Image.fromarray(image)) for image in images]).to(self._device)
        vectors: np.ndarray = self._model.encode_image(pixels).float().cpu().numpy()
        return vectors

    def fingerprint(self) -> str:
        return f"open_clip-{_digest(self.name, weights_digest(self._model.visual), repr(self._prepare))}"


class ClipEncoder:
    """The vision half of a CLIP model of transformers, with its projection.

    Args:
        path: Folder or Hub id of a CLIP checkpoint.
        device: Where it runs.
    """

    def __init__(self, path: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoConfig, AutoImageProcessor, CLIPVisionModelWithProjection

        config = AutoConfig.from_pretrained(path)
        if hasattr(config, "vision_config"):  # of both halves, whose projection it is that the vision half is to have
            config.vision_config.projection_dim = config.projection_dim
            config = config.vision_config
        loaded: Any = CLIPVisionModelWithProjection.from_pretrained(  # a pair, with output_loading_info
            path, config=config, dtype=torch.float32, output_loading_info=True
        )
        model, report = loaded
        if report["missing_keys"]:
            raise ValueError(f"encoder: {path} lacks {sorted(report['missing_keys'])[:5]}; expected a CLIP checkpoint")
        self._model: Any = model.to(device).eval()
        self._prepare = AutoImageProcessor.from_pretrained(path)
        self._device = device
        self.dim = int(self._model.config.projection_dim)

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = self._prepare(images=list(images), return_tensors="pt", input_data_format="channels_last")
        vectors: np.ndarray = self._model(pixels["pixel_values"].to(self._device)).image_embeds.float().cpu().numpy()
        return vectors

    def fingerprint(self) -> str:
        return f"clip-{_digest(weights_digest(self._model), _settings(self._prepare))}"


class PolicyEncoder:
    """Mean over the patches of what the image encoder of a SyVLA policy's action expert sees.

    Args:
        vision_tower: Backbone.
        image_processor: The policy's processor of low-resolution views.
        device: Where it runs.
    """

    def __init__(self, vision_tower: Any, image_processor: Any, device: str | torch.device = "cpu") -> None:
        from syvla.modeling_syvla.robot_encoders import feature_width

        self._model, self._prepare, self._device = vision_tower.to(device).eval(), image_processor, device
        self.dim = int(feature_width(vision_tower.config))

    @classmethod
    def from_pretrained(cls, path: str, device: str | torch.device = "cpu") -> PolicyEncoder:
        from transformers import AutoModel, AutoProcessor

        import syvla  # noqa: F401  registers the Auto classes

        tower = AutoModel.from_pretrained(path).expert.vision_tower
        return cls(tower, AutoProcessor.from_pretrained(path).expert_image_processor, device)

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = self._prepare(images=list(images), return_tensors="pt", input_data_format="channels_last")
        features = self._model(pixel_values=pixels["pixel_values"].to(self._device)).last_hidden_state
        if features.ndim == 4:  # a convolutional backbone's map (n, C, h, w)
            features = features.flatten(2).transpose(1, 2)
        vectors: np.ndarray = features.mean(dim=1).float().cpu().numpy()
        return vectors

    def fingerprint(self) -> str:
        return f"policy-{_digest(weights_digest(self._model), _settings(self._prepare))}"


def _settings(image_processor: Any) -> str:
    kept = {key: value for key, value in image_processor.to_dict().items() if not key.endswith(("_type", "_class"))}
    return json.dumps(kept, sort_keys=True, default=str)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
