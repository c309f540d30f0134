"""Thoughts on a key/value cache of fixed size, so that their decoding can be compiled and needs no new memory per token."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import StaticCache
from transformers.generation.configuration_utils import CompileConfig

logger = logging.getLogger(__name__)

GRANULE = 64  # prompts of similar length share a cache, and with it what was compiled for its size


class StaticThoughts:
    """Keeps static key/value caches for `generate`, one per shape (batch, length in steps of 64 tokens).

    With a static cache, attention runs over the whole cache, filled or not. Compiled decoding on a GPU gains more than
    that costs, since launching kernels takes most of a token's time. Without compiling, a growing cache is quicker.

    Args:
        max_shapes: How many shapes get a static cache. Further shapes get a growing one, with one warning.
        strict: Raise an error for a further shape instead.
        compile: Whether decoding is compiled.
    """

    def __init__(self, max_shapes: int = 1, strict: bool = False, compile: bool = True) -> None:
        self.max_shapes, self.strict, self.compile = max_shapes, strict, compile
        self._caches: dict[tuple[int, int, torch.device], StaticCache] = {}
        self._lock = threading.Lock()
        self._warned = False

    def __reduce__(self) -> Any:  # a copy has caches of its own
        return StaticThoughts, (self.max_shapes, self.strict, self.compile)

    @contextmanager
    def reserve_cache(self, vlm: Any, input_ids: torch.Tensor, new_tokens: int) -> Iterator[dict[str, Any]]:
        """Reserves the static cache of a shape for one call of `generate`, until the `with` block ends.

        Args:
            vlm: Model that generates.
            input_ids: Prompts, (B, L).
            new_tokens: Tokens that follow the prompt at most, the query tokens included.

        Yields:
            Further arguments of `generate`. Empty where no static cache is free: `generate` then makes a growing one.

        Raises:
            RuntimeError: If strict, and this shape would need more caches than `max_shapes`.
        """
        length = -(-(input_ids.shape[1] + new_tokens) // GRANULE) * GRANULE
        shape = (len(input_ids), length, input_ids.device)
        if not self._lock.acquire(blocking=False):  # another thread is using the caches
            yield {}
            return
        try:
            yield self._options(vlm, shape)
        finally:
            self._lock.release()

    def _options(self, vlm: Any, shape: tuple[int, int, torch.device]) -> dict[str, Any]:
        if shape not in self._caches:
            if len(self._caches) >= self.max_shapes:
                self._fall_back(shape)
                return {}
            self._caches[shape] = StaticCache(config=vlm.config, max_cache_len=shape[1])
        cache = self._caches[shape]
        if cache.is_initialized:
            cache.reset()
        options: dict[str, Any] = {cache_argument(vlm): cache, "disable_compile": not self.compile}
        if self.compile and shape[2].type == "cpu":
            options["compile_config"] = CompileConfig(mode="default")
            options["compile_config"]._compile_all_devices = True  # `generate` compiles on accelerators only by itself
        return options

    def _fall_back(self, shape: tuple[int, int, torch.device]) -> None:
        known = "; ".join(f"batch {batch}, {length} tokens" for batch, length, _ in self._caches)
        reason = (
            f"static caches exist for {known}, got batch {shape[0]}, {shape[1]} tokens; keep shapes fixed, or raise "
            f"max_shapes={self.max_shapes}"
        )
        if self.strict:
            raise RuntimeError(f"static thoughts: {reason}")
        if not self._warned:
            logger.warning("thinking on a growing cache where no static one fits (said once): %s", reason)
            self._warned = True


def cache_argument(vlm: Any) -> str:
    """Name of `forward`'s cache argument in the installed transformers: `past_key_values` in 5.4, `cache` later."""
    parameters = inspect.signature(type(vlm.model.language_model).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"
