"""Tasks by name, and the error message for a misspelled name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tasks.task import Task

_TASKS: dict[str, Callable[..., Task]] = {}
_Class = TypeVar("_Class", bound=Callable[..., Any])


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns the message for a name that does not exist: near matches first, else all there are."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    listed = ", ".join(choices[:30]) + (", ..." if len(choices) > 30 else "")
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {listed or 'none'}"
    return f"unknown {kind} {name!r}: {hint}"


def construct(kind: str, make: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Calls ``make(**options)``; unknown and missing options are refused in a message about ``kind``.

    Raises:
      ValueError: an option that ``make`` does not take, or lacks one that it needs.
    """
    parameters = inspect.signature(make).parameters
    for option in options:
        if option not in parameters:
            raise ValueError(unknown(f"option of {kind}", option, parameters))
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in options]
    if missing:
        raise ValueError(f"{kind} needs {', '.join(f'{name}=' for name in missing)}")
    return make(**options)


def register(name: str) -> Callable[[_Class], _Class]:
    """Registers a Task class under ``name``."""

    def add(task: _Class) -> _Class:
        if name in _TASKS:
            raise ValueError(f"there are two tasks named {name!r}")
        _TASKS[name] = task
        return task

    return add


def lookup(name: str) -> Callable[..., Task]:
    """Returns the class of the task ``name``, for what it ``needs`` before it is made.

    Raises:
      ValueError: there is no such task; near matches are named.
    """
    if name not in _TASKS:
        raise ValueError(unknown("task", name, _TASKS))
    return _TASKS[name]


def create(name: str, **options: Any) -> Task:
    """Makes a task.

    Args:
      name: one of :func:`list_tasks`.
      **options: the arguments of its class, and what it ``needs`` of the model.

    Raises:
      ValueError: an unknown task or option (near matches are named), a missing option, or
        invalid data.
    """
    return construct(f"task {name}", lookup(name), options)


def list_tasks() -> list[str]:
    """Returns the names of all tasks, sorted."""
    return sorted(_TASKS)
