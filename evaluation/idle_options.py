"""Options of `syvla-eval` that the chosen policy would ignore; they are refused, since whoever gives one expects an effect."""

from __future__ import annotations

import argparse

from .baselines import BASELINES

OF_CHECKPOINTS = ("device", "dtype", "compile", "noise", "advantage_guidance")
"""Of a checkpoint that this process loads."""

OF_MODELS = ("think", "max_new_tokens", "num_steps")
"""Of a checkpoint, also behind a server."""

OF_SERVERS = ("dialect", "prompt", "timeout", "connections", "token_file")
"""Of a policy server."""


def refuse_idle_options(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuses what has another value than its default and no effect.

    Raises:
        ValueError: Names the first of them, and what to do instead.
    """
    baseline = not arguments.server and arguments.model in BASELINES
    idle: dict[str, str] = {}
    if arguments.server or baseline:
        idle |= {
            name: f"it belongs to a checkpoint; start the policy server with --{name.replace('_', '-')}, and leave it out here"
            for name in OF_CHECKPOINTS
        }
    if baseline:
        idle |= dict.fromkeys(
            OF_MODELS, f"{arguments.model!r} reads no such option; leave it out, or pass --model CHECKPOINT"
        )
    if not arguments.server:
        idle |= dict.fromkeys(OF_SERVERS, "it belongs to a policy server; leave it out, or pass --server URL")
    for name, why in idle.items():
        if getattr(arguments, name) != parser.get_default(name):
            raise ValueError(f"{name}: it has no effect here: {why}")
