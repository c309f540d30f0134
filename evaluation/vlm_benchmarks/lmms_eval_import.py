"""Imports lmms-eval, which is optional, slow to import (about ten seconds), and loud."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

SUPPORTED = "0.7.3"
INSTALL_HINT = (
    "pip install 'syvla[eval]'; or, without most of its requirements, in a checkout: scripts/install_lmms_eval.sh"
)


def require_lmms_eval() -> str:
    """Imports lmms-eval and returns its version; what it logs goes to the logger "lmms_eval" from then on.

    Raises:
        ImportError: If it, or a part that it needs, is not installed; the message says what to install.
    """
    first = "lmms_eval.evaluator" not in sys.modules
    try:
        with contained_changes():
            import lmms_eval.evaluator
            import lmms_eval.models  # noqa: F401
            from loguru import logger
    except ImportError as error:
        raise ImportError(f"the VLM benchmarks need lmms-eval ({error}): {INSTALL_HINT}") from error
    if first:
        logger.remove()  # its own sink writes to the standard output of whoever imports it
        logger.add(_to_logging, level="INFO", format="{message}")
    return metadata.version("lmms-eval")


@contextlib.contextmanager
def contained_changes() -> Iterator[None]:
    """Takes back what lmms-eval 0.7.3 changes in other libraries, whose users rely on it being otherwise.

    It makes Pillow fill up truncated images in silence, gives every user of a file lock's path the same lock (so that a second
    writer of a dataset is not kept out), and replaces how SSL contexts are pickled.
    """
    import ssl

    import filelock
    from PIL import ImageFile

    locks: Any = type(filelock.FileLock)
    before = (locks.__call__, ImageFile.LOAD_TRUNCATED_IMAGES, {name: vars(ssl.SSLContext).get(name) for name in _SSL})
    try:
        yield
    finally:
        locks.__call__, ImageFile.LOAD_TRUNCATED_IMAGES, members = before
        for name, value in members.items():
            if value is None and name in vars(ssl.SSLContext):
                delattr(ssl.SSLContext, name)
        evaluator = sys.modules.get("lmms_eval.evaluator")
        reentrant = getattr(evaluator, "_enable_reentrant_filelocks", None)
        if reentrant is not None:
            reentrant._patched = False  # so that the next caller that needs the patch applies it again


_SSL = ("__reduce__", "_orig_reduce")


def _to_logging(message: Any) -> None:
    record = message.record
    logging.getLogger("lmms_eval").log(record["level"].no, record["message"])


@contextlib.contextmanager
def quiet_output() -> Iterator[None]:
    """Sends what lmms-eval prints to the standard error, so that the standard output holds the results alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
