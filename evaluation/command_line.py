"""Arguments that several commands of this package share."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .environments import ENVIRONMENTS
from .environments.custom import is_custom

ENVIRONMENT_HELP = f"environment: {', '.join(sorted(ENVIRONMENTS))}, or module:Class of your own"


def environment_name(text: str) -> str:
    """The name of a back-end, or "module:Class".

    Raises:
        argparse.ArgumentTypeError: If it is neither.
    """
    if text not in ENVIRONMENTS and not is_custom(text):
        raise argparse.ArgumentTypeError(f"expected one of {sorted(ENVIRONMENTS)} or module:Class, got {text!r}")
    return text


def environment_option(text: str) -> tuple[str, Any]:
    """`KEY=VALUE` as (key, value); the value is read as JSON where it is JSON, else taken as text.

    Raises:
        argparse.ArgumentTypeError: If there is no `=`.
    """
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
