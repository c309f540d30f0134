"""Entry point `lmms_eval.models`: makes `lmms-eval --model syvla --model_args pretrained=DIR` work."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval reads; the model's module is imported only when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="syvla", chat_class_path="syvla.evaluation.vlm_benchmarks.lmms_model.SyVLAForLmms")
