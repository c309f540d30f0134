"""What is named as a checkpoint and is none: said before anything slow is imported, in this project's words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKPOINT = "expected a folder or Hub id of a checkpoint"


def check_checkpoint(model: str, expected: str = CHECKPOINT) -> None:
    """Refuses what can be no checkpoint; a possible Hub id passes.

    Args:
        model: What was named.
        expected: What might have been, for the message.

    Raises:
        FileNotFoundError: If it is the path of no folder, or of one without `config.json`.
        ValueError: If `config.json` is no JSON, or another project's.
    """
    folder = Path(model)
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise FileNotFoundError(f"model: {model} is not a folder; {expected}")
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        inside = sorted(path.parent.relative_to(folder) for path in folder.glob("*/config.json"))
        hint = f"; there is one in {folder / inside[-1]}" if inside else ""
        raise FileNotFoundError(f"model: {model} has no config.json, so it is no checkpoint{hint}") from None
    except ValueError as error:
        raise ValueError(f"model: {folder / 'config.json'} is no JSON ({error}); copy the checkpoint again") from error
    if isinstance(config, dict) and "model_type" not in config and "type" in config:
        raise ValueError(
            f"model: {model} is a policy of LeRobot ({config['type']}); serve it with integrations/lerobot_policy_server, then "
            "pass --server ws://127.0.0.1:8000"
        )


@contextmanager
def naming_the_checkpoint(model: str, expected: str = CHECKPOINT) -> Iterator[None]:
    """Says of a name that is no folder, where loading fails, that it is none and that the Hub does not give it.

    Raises:
        FileNotFoundError: As above; errors of a folder's files stay as they are.
    """
    try:
        yield
    except OSError as error:
        if Path(model).is_dir():
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FileNotFoundError(
            f"model: {model} is no folder here, and there is no such checkpoint to be had from the Hub ({reason}); {expected}"
        ) from error
