"""Replies and metadata in the client's codec. No torch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from syvla.serving.wire.json_codec import encode_json
from syvla.serving.wire.msgpack_codec import pack

from .metrics import Metrics


def encode(value: Any, codec: str) -> bytes:
    """`value` in one of the msgpack codecs, or as `json`."""
    return encode_json(value) if codec == "json" else pack(value, codec)


def encode_reply(reply: dict[str, Any], codec: str, metrics: Metrics, previous_ms: float | None = None) -> bytes:
    """A reply with the time that encoding takes in it: it is encoded twice, a few microseconds each.

    `server_timing` is what openpi's servers send. Every array in a reply has a row per action, since openpi's
    `ActionChunkBroker` slices all of them by the step.
    """
    started = time.monotonic()
    encode(reply, codec)
    seconds = time.monotonic() - started
    metrics.observe("encode", seconds)
    timings = reply.get("timings_ms")
    if timings is not None:
        timings["encode"] = round(seconds * 1000, 3)
        reply["server_timing"] = {"infer_ms": timings["wait"]}
        if previous_ms is not None:
            reply["server_timing"]["prev_total_ms"] = previous_ms
        horizon = len(reply["actions"])
        assert all(len(leaf) >= horizon for leaf in reply.values() if isinstance(leaf, np.ndarray))
    return encode(reply, codec)
