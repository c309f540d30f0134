"""Serving SyVLA to robots: the policy, its server and a light client."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .action_chunks import ActionChunks
    from .chunk_executor import AsyncChunkExecutor, ChunkExecutor
    from .client import AsyncPolicyClient, PolicyClient, PolicyError
    from .policy import SyVLAPolicy
    from .policy_server import PolicyServer
    from .rl_client import RLClient
    from .rollout_recorder import RolloutRecorder

_MODULES = {
    "ActionChunks": "action_chunks",
    "AsyncChunkExecutor": "chunk_executor",
    "AsyncPolicyClient": "client",
    "ChunkExecutor": "chunk_executor",
    "PolicyClient": "client",
    "PolicyError": "client",
    "PolicyServer": "policy_server",
    "RLClient": "rl_client",
    "RolloutRecorder": "rollout_recorder",
    "SyVLAPolicy": "policy",
}

__all__ = [
    "ActionChunks",
    "AsyncChunkExecutor",
    "AsyncPolicyClient",
    "ChunkExecutor",
    "PolicyClient",
    "PolicyError",
    "PolicyServer",
    "RLClient",
    "RolloutRecorder",
    "SyVLAPolicy",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
