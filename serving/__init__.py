"""Serving SyVLA to robots: the policy, its server and a light client."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.chunk_executor import AsyncChunkExecutor, ChunkExecutor
    from .client.command_log import CommandLog
    from .client.policy_client import AsyncPolicyClient, PolicyClient
    from .client.retries import PolicyError
    from .client.rl_client import RLClient
    from .client.robot_guard import EmergencyStop, EmergencyStopped, RobotGuard
    from .client.silence import Watchdog
    from .contract.action_chunks import ActionChunks
    from .contract.answer_delay import MeasuredDelay
    from .contract.chunk_seams import Seams
    from .policies.in_process import SyVLAPolicy
    from .policy_server import PolicyServer
    from .recording.recorder import RolloutRecorder

_MODULES = {
    "ActionChunks": "contract.action_chunks",
    "AsyncChunkExecutor": "client.chunk_executor",
    "AsyncPolicyClient": "client.policy_client",
    "ChunkExecutor": "client.chunk_executor",
    "CommandLog": "client.command_log",
    "EmergencyStop": "client.robot_guard",
    "EmergencyStopped": "client.robot_guard",
    "MeasuredDelay": "contract.answer_delay",
    "PolicyClient": "client.policy_client",
    "PolicyError": "client.retries",
    "PolicyServer": "policy_server",
    "RLClient": "client.rl_client",
    "RobotGuard": "client.robot_guard",
    "RolloutRecorder": "recording.recorder",
    "Seams": "contract.chunk_seams",
    "SyVLAPolicy": "policies.in_process",
    "Watchdog": "client.silence",
}

__all__ = [
    "ActionChunks",
    "AsyncChunkExecutor",
    "AsyncPolicyClient",
    "ChunkExecutor",
    "CommandLog",
    "EmergencyStop",
    "EmergencyStopped",
    "MeasuredDelay",
    "PolicyClient",
    "PolicyError",
    "PolicyServer",
    "RLClient",
    "RobotGuard",
    "RolloutRecorder",
    "Seams",
    "SyVLAPolicy",
    "Watchdog",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
