"""Tasks by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from suggestions import unknown
from tasks.task import Task

_TASKS: dict[str, Callable[..., Task]] = {}
_Class = TypeVar("_Class", bound=Callable[..., Any])


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


def construct_named(kind: str, classes: Mapping[str, str], name: str, options: dict[str, Any]) -> Any:
    """Makes the one of several data sets that has a name; its file under tasks/datasets is imported only then: TFDS
    takes a second.

    Args:
      kind: of thing, for messages.
      classes: "file.Class" by name.

    Raises:
      ValueError: an unknown name or option (near ones are named), or data that can't be used.
    """
    if name not in classes:
        raise ValueError(unknown(kind, name, classes))
    file, _, cls = classes[name].partition(".")
    return construct(f"{kind} {name}", getattr(importlib.import_module(f"tasks.datasets.{file}"), cls), options)


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
