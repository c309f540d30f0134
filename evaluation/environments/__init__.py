"""Environments for recording and closed-loop evaluation, made by name. A back-end is imported when it is asked for."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .base import EVALUATION_SEED_OFFSET, RobotEnvironment, ScriptedExpert
from .custom import is_custom
from .graphics import require_graphics

__all__ = [
    "ENVIRONMENTS",
    "EVALUATION_SEED_OFFSET",
    "Backend",
    "RobotEnvironment",
    "ScriptedExpert",
    "check_tasks",
    "expand_tasks",
    "find_backend",
    "make_environment",
    "make_expert",
]


@dataclass(frozen=True)
class Backend:
    """Where a back-end lives.

    Attributes:
        environment: "module:attribute" of the environment, called with `task=` and the caller's keyword arguments.
        expert: "module:attribute" of a function that makes the scripted expert of an environment, None without one.
        install: Command that installs what the back-end needs.
        graphics: Whether it draws with OpenGL, which is then looked for before anything is imported.
    """

    environment: str
    expert: str | None
    install: str
    graphics: bool = False


ENVIRONMENTS: dict[str, Backend] = {
    "tabletop": Backend(
        environment=f"{__name__}.tabletop.environment:TabletopEnv",
        expert=f"{__name__}.tabletop.expert:make_tabletop_expert",
        install="pip install 'syvla[sim]'",
    ),
    "libero": Backend(
        environment=f"{__name__}.libero.environment:LiberoEnv",
        expert=f"{__name__}.libero.expert:make_libero_expert",
        install="pip install 'syvla[libero]' && pip install --no-deps hf-libero==0.1.4 robosuite==1.4.0 bddl==1.0.1",
        graphics=True,
    ),
    "metaworld": Backend(
        environment=f"{__name__}.metaworld.environment:MetaWorldEnv",
        expert=f"{__name__}.metaworld.expert:make_metaworld_expert",
        install="pip install 'syvla[metaworld]'",
        graphics=True,
    ),
    "aloha": Backend(
        environment=f"{__name__}.aloha.environment:AlohaEnv",
        expert=f"{__name__}.aloha.expert:make_aloha_expert",
        install="pip install 'syvla[aloha]'",
        graphics=True,
    ),
    "adroit": Backend(
        environment=f"{__name__}.adroit.environment:AdroitEnv",
        expert=None,
        install="pip install 'syvla[adroit]'",
        graphics=True,
    ),
}
"""Back-ends by name. Add an entry to make another simulator known; it must offer `RobotEnvironment`."""


def make_environment(name: str, task: str, **kwargs: Any) -> Any:
    """Makes an environment.

    Args:
        name: Name of the back-end, a key of `ENVIRONMENTS`, or "module:Class" of your own, see `custom`.
        task: Name of the task.
        kwargs: Passed to the back-end.

    Raises:
        ValueError: If the back-end, the task or an argument is unknown; the message lists the known ones.
        ImportError: If the back-end's simulator is not installed, or OpenGL does not work; the message names the
            command that installs it.
        FileNotFoundError: If the simulator's assets are missing; the message says what to put where.
    """
    factory = _load(name, find_backend(name).environment)
    known = inspect.signature(factory).parameters
    if is_custom(name) and "task" not in known:
        raise ValueError(
            f"environment {name!r}: expected a class whose constructor takes task, got one of {sorted(known)}"
        )
    unknown = sorted(set(kwargs) - set(known))
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        raise ValueError(
            f"environment {name!r}: unknown arguments {unknown}; known are {sorted(set(known) - {'task'})}"
        )
    with _naming_the_install(name):
        return factory(task=task, **kwargs)


def expand_tasks(name: str, tasks: Sequence[str]) -> list[str]:
    """Tasks with the groups among them spelled out, each once: "all", and what the back-end's `task_groups` name.

    Args:
        name: Name of the back-end.
        tasks: Names of tasks and groups, such as "libero_spatial" or "hard". What is neither stays as it is.

    Raises:
        ValueError, ImportError: As `make_environment`.
    """
    environment = _load(name, find_backend(name).environment)
    single = tuple(getattr(environment, "tasks", ()))  # which a function that makes environments does not have
    groups: dict[str, Sequence[str]] = {
        **({"all": single} if single else {}),
        **getattr(environment, "task_groups", {}),
    }
    expanded = [one for task in tasks for one in (groups[task] if task in groups and task not in single else [task])]
    return list(dict.fromkeys(expanded))


def check_tasks(name: str, tasks: Sequence[str], options: Mapping[str, Any]) -> None:
    """Lets a back-end look, before anything runs, for what its tasks need, where it has a class method `check_tasks`.

    Args:
        name: Name of the back-end.
        tasks: Names of tasks.
        options: Keyword arguments of `make_environment`.

    Raises:
        ValueError, ImportError, FileNotFoundError: As `make_environment`.
    """
    look = getattr(_load(name, find_backend(name).environment), "check_tasks", None)
    if look is not None:
        with _naming_the_install(name):
            look(tasks, options)


def make_expert(env: Any, **kwargs: Any) -> ScriptedExpert:
    """Makes the scripted expert of an environment that `make_environment` made (wrapped or not): its own `make_expert()`, if
    it has that method, else its back-end's.

    Raises:
        ValueError: If the environment belongs to no known back-end or its back-end has no expert.
    """
    base = env.unwrapped
    if hasattr(base, "make_expert"):
        own: ScriptedExpert = base.make_expert(**kwargs)
        return own
    for name, backend in ENVIRONMENTS.items():
        module, attribute = backend.environment.split(":")
        if type(base).__module__ == module and type(base).__name__ == attribute:
            if backend.expert is None:
                raise ValueError(f"environment {name!r} has no scripted expert")
            expert: ScriptedExpert = _load(name, backend.expert)(base, **kwargs)
            return expert
    raise ValueError(
        f"{type(base).__name__}: has no scripted expert; expected an environment of one of {sorted(ENVIRONMENTS)}, or a "
        "method make_expert()"
    )


def find_backend(name: str) -> Backend:
    """The back-end of a name, or one that stands for "module:Class".

    Raises:
        ValueError: If it is neither.
    """
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    if is_custom(name):
        return Backend(environment=name, expert=None, install="pip install what the module imports")
    raise ValueError(f"environment: expected one of {sorted(ENVIRONMENTS)} or module:Class of your own, got {name!r}")


def _load(name: str, reference: str) -> Any:
    module, attribute = reference.split(":")
    if is_custom(name) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # which an installed command does not have there, unlike `python script.py`
    with _naming_the_install(name):
        if find_backend(name).graphics:
            require_graphics()
        loaded = importlib.import_module(module)
    if not hasattr(loaded, attribute):
        raise ValueError(f"environment {name!r}: module {module} has no {attribute!r}")
    return getattr(loaded, attribute)


@contextmanager
def _naming_the_install(name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or str(error)).split(".")[
            0
        ]  # a module inside a package that is missing names that module
        raise ImportError(f"environment {name!r} needs {missing}; run: {find_backend(name).install}") from error
