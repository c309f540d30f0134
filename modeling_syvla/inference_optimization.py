"""One method that makes a loaded model quick at inference; nothing of it is saved or touches training."""

from __future__ import annotations

import logging
from typing import Any

import torch

from .denoise_loop import CompiledDenoising
from .inference_linear import FusedProjections, onednn_is_quicker, use_onednn
from .packed_weights import PackedLinear, is_packed, why_not_packed
from .packed_weights import pack_weights as pack
from .static_thoughts import StaticThoughts

logger = logging.getLogger(__name__)


class InferenceOptimizationMixin:
    """Method of [`SyVLAModel`]."""

    config: Any
    expert: Any
    compiled_denoising: CompiledDenoising | None = None
    static_thoughts: StaticThoughts | None

    def optimize_for_inference(
        self,
        *,
        compile: bool = False,
        fuse: bool = True,
        onednn: bool | None = None,
        pack_weights: bool = False,
        static_thoughts: bool | None = None,
        max_shapes: int = 1,
        whole_loop: bool | None = None,
        strict: bool = False,
    ) -> Any:
        """Quicker inference with the same results up to rounding. Call it last: after loading, moving, adapting.

        Args:
            compile: Put the flow steps, and the decoding of thoughts, through `torch.compile`. The first call of a shape
                takes tens of seconds.
            fuse: Compute the expert's projections of the same tokens as one product. Layer by layer, without a second copy
                of the weights; checkpoints and training do not notice. See `FusedProjections`.
            onednn: Whether float32 linear layers on the CPU go through oneDNN. None: where MKL is known to be slower.
            pack_weights: On a CPU, bring the weights into oneDNN's own layout: the quickest form, without a second copy of
                them, but for inference alone. Instead of `fuse`, and not with `compile`. See `PackedLinear`.
            static_thoughts: Whether thoughts use a cache of fixed size, see `StaticThoughts`. None: where they are compiled.
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
        if compile and (reason := _why_not_compile(module.device)):
            self._left_out("compile", reason, strict)
            compile = False
        if compile and is_packed(module):
            self._left_out("compile", "it takes plain weights only, and these are packed", strict)
            compile = False
        if pack_weights:
            reason = "torch.compile takes plain weights only" if compile else why_not_packed(module)
            if reason is None:
                self._unfuse()
                pack(module)
            else:
                self._left_out("pack_weights", reason, strict)
        if fuse and flow and not is_packed(module):
            try:
                for layer in self.expert.layers:
                    layer.fuse()
            except ValueError as error:
                self._left_out("fuse", str(error), strict)
        self.static_thoughts = None
        if compile if static_thoughts is None else static_thoughts:
            self.static_thoughts = StaticThoughts(max_shapes, strict, compile)
        self.compiled_denoising = None
        if compile and flow:
            self.compiled_denoising = CompiledDenoising(max_shapes, strict, whole_loop)
        return self

    def train(self, mode: bool = True) -> Any:
        """Raises: RuntimeError: If `mode`, and the weights are packed; nothing has changed then."""
        if mode:
            for module in self._packed_layers():
                module.train()  # raises
        return super().train(mode)  # type: ignore[misc]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for module in self._packed_layers():  # before anything has moved
            module.require_unmoved(fn)
        return super()._apply(fn, recurse)  # type: ignore[misc]

    def _packed_layers(self) -> list[PackedLinear]:
        module: Any = self
        return [layer for layer in module.modules() if isinstance(layer, PackedLinear)]

    def _unfuse(self) -> None:
        for module in self.expert.modules():
            if isinstance(getattr(module, "fused", None), FusedProjections):
                module.fused = None

    def _left_out(self, option: str, reason: str, strict: bool) -> None:
        if strict:
            raise ValueError(f"optimize_for_inference: {option} is not possible here: {reason}")
        logger.warning("optimize_for_inference: without %s: %s", option, reason)


def _why_not_compile(device: torch.device) -> str | None:
    """Tries it on something small: it needs a compiler for C++, on a GPU for Triton."""
    try:
        torch.compile(torch.sin, fullgraph=True)(torch.zeros(1, device=device))
    except Exception as error:
        return f"torch.compile failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None
