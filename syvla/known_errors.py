"""Which part of docs/troubleshooting.md explains an error; commands name it below the error.

Each anchor has words that stand in the message; a test compares them with the page and with the sources.
"""

from __future__ import annotations

ANCHORS: dict[str, tuple[str, ...]] = {
    "old-python": ("it needs Python 3.11 or newer",),
    "untested-python": ("so nothing is known to work with Python",),
    "not-registered": ("Unrecognized configuration class",),
    "unexpected-argument": ("predict_actions: unexpected argument",),
    "unknown-robot": ("embodiment: expected one of",),
    "unknown-views": ("images: unknown views",),
    "weights-do-not-fit": ("the checkpoint does not fit the model",),
    "lfs": ("Git LFS pointers, not the files themselves",),
    "no-dataset": ("holds no LeRobot dataset",),
    "no-revision": ("the Hub dataset has no revision",),
    "no-vector": ("is no vector feature of this dataset",),
    "two-robots": ("have different dimensions",),
    "not-finite": ("Repair or drop the episode that holds it",),
    "old-filter": ("filter_file: made for another dataset",),
    "skipped-rows": ("rows cannot be used",),
    "too-long": ("tokens exceed max_length",),
    "cache-full": ("lower cache_gb, free the disk",),
    "no-chats": ("no multimodal_datasets are given",),
    "unknown-key": ("unknown key",),
    "both-needed": ("both are needed",),
    "no-effect": ("no effect",),
    "other-run": ("holds checkpoints of another run", "holds the weights of a finished run"),
    "no-state": ("with the state, so they need",),
    "no-overlap": ("has an effect where chunks overlap",),
    "ensemble-rtc": ("passes the last one alone",),
    "whole-chunks": ("so it needs n_action_steps below chunk_size",),
    "known-actions": ("expected without continuation, and a model",),
}


def anchor_of(message: str) -> str | None:
    """The anchor of docs/troubleshooting.md for a message; None where the page has none."""
    found = (anchor for anchor, parts in ANCHORS.items() if any(part in message for part in parts))
    return next(found, None)
