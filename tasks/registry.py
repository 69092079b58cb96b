"""The registry of tasks by name."""

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
    """Calls ``make(**options)`` after checking the options; ``kind`` names it in error messages.

    Raises:
      ValueError: an option that ``make`` does not take, or a missing one that it needs.
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
    """Makes a data set by name. Its file under tasks/datasets is imported only then, as importing TFDS takes a second.

    Args:
      kind: what is made, for error messages.
      classes: "file.Class" by name.
      name: a key of ``classes``.
      options: arguments of the class.

    Raises:
      ValueError: an unknown name or option (similar ones are suggested), or data that can't be used.
    """
    if name not in classes:
        raise ValueError(unknown(kind, name, classes))
    file, _, cls = classes[name].partition(".")
    return construct(f"{kind} {name}", getattr(importlib.import_module(f"tasks.datasets.{file}"), cls), options)


def register(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: registers a task under ``name``.

    Raises:
      ValueError: the name is taken.
    """

    def add(task: _Class) -> _Class:
        if name in _TASKS:
            raise ValueError(f"there are two tasks named {name!r}")
        _TASKS[name] = task
        return task

    return add


def lookup(name: str) -> Callable[..., Task]:
    """Returns the class of the task ``name``, for example to read what it ``needs``.

    Raises:
      ValueError: there is no such task; the message suggests similar names.
    """
    if name not in _TASKS:
        raise ValueError(unknown("task", name, _TASKS))
    return _TASKS[name]


def create(name: str, **options: Any) -> Task:
    """Makes a task.

    Args:
      name: one of :func:`list_tasks`.
      **options: arguments of its class, including what it ``needs`` from the model.

    Raises:
      ValueError: an unknown task or option (similar names are suggested), a missing option, or invalid data.
    """
    return construct(f"task {name}", lookup(name), options)


def list_tasks() -> list[str]:
    """Returns the names of all tasks, sorted."""
    return sorted(_TASKS)
