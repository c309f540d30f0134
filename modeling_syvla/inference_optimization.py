"""One method that makes a loaded model quick at inference; nothing of it is saved or touches training."""

from __future__ import annotations

import logging
from typing import Any

import torch

from .denoise_loop import CompiledDenoising
from .onednn_linear import onednn_is_quicker, use_onednn

logger = logging.getLogger(__name__)


class InferenceOptimizationMixin:
    """Method of [`SyVLAModel`]."""

    config: Any
    expert: Any
    compiled_denoising: CompiledDenoising | None = None

    def optimize_for_inference(
        self,
        *,
        compile: bool = False,
        fuse: bool = True,
        onednn: bool | None = None,
        max_shapes: int = 1,
        whole_loop: bool | None = None,
        strict: bool = False,
    ) -> Any:
        """Quicker inference with the same results up to rounding. Call it last: after loading, moving, adapting.

        Args:
            compile: Put the flow steps through `torch.compile`. The first call of a shape takes tens of seconds.
            fuse: Compute the expert's projections of the same tokens as one product. Layer by layer, without a second copy
                of the weights; checkpoints and training do not notice. See `FusedProjections`.
            onednn: Whether float32 linear layers on the CPU go through oneDNN. None: where MKL is known to be slower.
            max_shapes, whole_loop: See `CompiledDenoising`.
            strict: Raise on what is not possible, instead of leaving it out with one warning.

        Returns:
            The model itself.

        Raises:
            ValueError: What was asked for is not possible, if strict.
        """
        module: Any = self
        flow = self.config.action_head != "l1_regression"
        quicker = onednn_is_quicker() if onednn is None else onednn
        if quicker and not torch.backends.mkldnn.is_available():
            self._left_out("onednn", "this build of torch has no oneDNN", strict)
        else:
            use_onednn(module, quicker)
        if fuse and flow:
            try:
                for layer in self.expert.layers:
                    layer.fuse()
            except ValueError as error:
                self._left_out("fuse", str(error), strict)
        self.compiled_denoising = None
        if compile and not flow:
            self._left_out("compile", f"action_head={self.config.action_head!r} has no flow steps", strict)
        elif compile:
            self.compiled_denoising = CompiledDenoising(max_shapes, strict, whole_loop)
        return self

    def _left_out(self, option: str, reason: str, strict: bool) -> None:
        if strict:
            raise ValueError(f"optimize_for_inference: {option} is not possible here: {reason}")
        logger.warning("optimize_for_inference: without %s: %s", option, reason)
