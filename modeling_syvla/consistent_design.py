"""Choices of a design, and the combinations that have no meaning."""

from __future__ import annotations

from typing import Any

from .flow_solver import FlowSolver, check_solver

CONDITIONINGS = ("query_states", "all_hidden_states")
ACTION_HEADS = ("flow_matching", "l1_regression")
DECOUPLING_CHOICES = ("weakest", "random", "strongest")
"""Query states that Intention Decoupling masks: those of smallest gradient (the paper); as controls, as many random ones, or
those of largest gradient."""

CHUNK_ENDS = ("noise", "masked", "hold", "hold_untrained")
"""What training puts into the steps of a chunk beyond the end of an episode.

- "noise": zeros on the way from noise, not trained. At inference other values stand there, which the real steps attend to.
- "masked": the same, but no step attends to them. At inference every step is attended to.
- "hold": the last action, trained, as openpi and LeRobot do. Inference sees what training saw.
- "hold_untrained": the last action, not trained.
"""


def require_consistent_design(config: Any) -> None:
    """Refuse combinations of baselines that have no meaning; fields may have been set after the config was made.

    Raises:
        ValueError: Naming the field and the fix.
    """
    require_choice("conditioning", config.conditioning, CONDITIONINGS)
    require_choice("action_head", config.action_head, ACTION_HEADS)
    require_choice("decoupling_choice", config.decoupling_choice, DECOUPLING_CHOICES)
    _require_used_controls(config)
    require_choice("chunk_end", config.chunk_end, CHUNK_ENDS)
    check_solver(config.flow_solver, config.flow_grid_power)
    if not 0 <= config.simulated_delay < config.chunk_size:
        raise ValueError(
            f"simulated_delay: expected 0 up to less than chunk_size={config.chunk_size}, got {config.simulated_delay}"
        )
    if config.action_head == "l1_regression" and config.simulated_delay:
        raise ValueError(
            "simulated_delay: has no effect with action_head='l1_regression', which reads no actions; leave it out"
        )
    if config.action_head == "l1_regression" and not FlowSolver.of(config).uniform_euler:
        raise ValueError("flow_solver: has no effect with action_head='l1_regression', which has no flow; leave it out")
    if config.action_head == "l1_regression" and config.chunk_end in ("masked", "hold_untrained"):
        raise ValueError(
            f"chunk_end: {config.chunk_end!r} has no effect with action_head='l1_regression', whose steps do not attend to "
            "each other; use 'hold' or 'noise'"
        )
    if not isinstance(config.advantage_conditioned, bool):
        raise ValueError(f"advantage_conditioned: expected true or false, got {config.advantage_conditioned!r}")
    if config.advantage_conditioned and (config.action_head, config.conditioning) != ("flow_matching", "query_states"):
        raise ValueError(
            "advantage_conditioned: expected action_head='flow_matching' and conditioning='query_states', the design that "
            f"reinforcement learning trains, got {config.action_head!r} and {config.conditioning!r}"
        )
    if config.conditioning != "all_hidden_states":
        return
    if config.intention_decoupling:
        raise ValueError(
            "intention_decoupling: it masks Feature Query States, but conditioning='all_hidden_states' hands every hidden "
            "state to the expert; set intention_decoupling=False for this baseline"
        )
    if config.action_head == "l1_regression":
        raise ValueError(
            "conditioning: expected 'query_states' with action_head='l1_regression', which reads a fixed number of "
            "states; got 'all_hidden_states'"
        )


def _require_used_controls(config: Any) -> None:
    if config.decoupling_choice != "weakest" and not config.intention_decoupling:
        raise ValueError(
            f"decoupling_choice: {config.decoupling_choice!r} has no effect with intention_decoupling=False; leave it out, or "
            "turn decoupling on"
        )
    if isinstance(config.query_noise, bool) or not 0 <= config.query_noise < float("inf"):
        raise ValueError(f"query_noise: expected a finite number, at least 0, got {config.query_noise!r}")
    if config.query_noise and config.conditioning != "query_states":
        raise ValueError(
            "query_noise: expected 0 with conditioning='all_hidden_states', which hands more than query states to the expert"
        )


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError for a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
