"""What closed-loop evaluation needs of a policy, and how to load one: from a checkpoint, or behind a policy server.

A policy turns observations into action chunks in physical units. It is called with a batch of observations of several
episodes. The answer to one observation must not depend on the others, so all randomness comes from each sample's own seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from syvla.serving.contract.action_chunks import ActionChunks

from .baselines import BASELINES, Baseline
from .checkpoint_folder import check_checkpoint, naming_the_checkpoint
from .environments.base import Observation, RobotEnvironment

_MODELS = f"expected a folder or Hub id of a checkpoint, or one of {sorted(BASELINES)}"


class Policy(Protocol):
    """What `evaluate_closed_loop` needs of a policy.

    Attributes:
        name: Name for reports and progress bars.
        chunk_size: T, the number of actions per call.

    It may also have `control_hz`, the rate at which its actions are meant to be executed; None if it is not known.
    """

    name: str
    chunk_size: int

    def identity(self) -> dict[str, Any]:
        """JSON-serializable description that changes whenever the policy's behavior may change."""
        ...

    def predict(
        self, observations: Sequence[Observation], instructions: Sequence[str], *, seeds: Sequence[int]
    ) -> ActionChunks:
        """Action chunks for B observations.

        Args:
            observations: B observations.
            instructions: B task instructions.
            seeds: B seeds, unique to episode and call; the only source of randomness.
        """
        ...


def check_action_chunks(answer: ActionChunks, batch: int, steps: int, action_names: Sequence[str]) -> None:
    """Refuses an answer that cannot be executed. Values that are not finite pass; they make the episode fail.

    Args:
        answer: Of a policy.
        batch: B, the number of observations.
        steps: Least length T of a chunk.
        action_names: D names of the environment's action.

    Raises:
        ValueError: If the actions have another shape or dtype, or there are more or fewer thoughts, than asked for.
    """
    actions = answer.actions
    expected = f"({batch}, at least {steps}, {len(action_names)})"
    if actions.ndim != 3 or not np.issubdtype(actions.dtype, np.floating):
        raise ValueError(f"policy's actions: expected floats {expected}, got {actions.shape} {actions.dtype}")
    rows, length, width = actions.shape
    if width != len(action_names):
        raise ValueError(
            f"policy's actions: expected {len(action_names)} dimensions, which are {', '.join(action_names)}; got "
            f"{width}; was the policy trained on this robot?"
        )
    if rows != batch or length < steps:
        raise ValueError(f"policy's actions: expected {expected}, got {actions.shape}; lower replan_steps if T is less")
    if answer.thoughts is not None and len(answer.thoughts) != batch:
        raise ValueError(f"policy's thoughts: expected {batch} texts, got {len(answer.thoughts)}")


def load_policy(model: str, environment: RobotEnvironment, **options: Any) -> Policy | Baseline:
    """A policy for `environment`.

    Args:
        model: A name of `BASELINES`, folder or Hub id of a checkpoint, or URL of a policy server; one that ends in /act is
            OpenVLA-OFT's, and tcp://host:port is GR00T's.
        environment: Environment that names the embodiment and the cameras.
        **options: For a checkpoint see `SyVLAPolicy.from_pretrained`, for a server `RemotePolicy`.

    Raises:
        ImportError: If what a policy server needs is not installed.
        FileNotFoundError: If `model` is a folder that does not exist or is no checkpoint, or a name that the Hub does not give.
        ValueError: If the folder holds another project's policy.
        ConnectionError: If no policy server answers at the URL.
    """
    if model in BASELINES:
        return BASELINES[model]()
    if "://" in model:
        if urlsplit(model).path.rstrip("/").endswith("/act"):
            from .act_server_policy import ActServerPolicy

            return ActServerPolicy(model, environment, **options)
        try:
            if urlsplit(model).scheme == "tcp":
                from .groot_policy import GrootPolicy

                return GrootPolicy(model, environment, **options)
            from .remote_policy import RemotePolicy
        except ModuleNotFoundError as error:
            raise ImportError(f"a policy server needs {error.name}; run: pip install 'syvla[serve]'") from error
        return RemotePolicy(model, environment, **options)
    check_checkpoint(model, _MODELS)
    from syvla.serving.policies.in_process import (
        SyVLAPolicy,
    )  # torch, which an environment with a policy server behind it may lack

    with naming_the_checkpoint(model, _MODELS):
        return SyVLAPolicy.from_pretrained(model, environment.embodiment, environment.view_cameras, **options)
