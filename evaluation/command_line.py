"""Arguments that several commands of this package share."""

from __future__ import annotations

import argparse
import json
from typing import Any


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
