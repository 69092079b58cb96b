"""Problems to train on: data, loss and metrics. Tasks know no model.

``tasks.create(name, **options)`` makes one, ``tasks.list_tasks()`` lists them.
"""

from tasks.classification import Classification
from tasks.language_modeling import LanguageModeling
from tasks.registry import create, list_tasks, lookup, register
from tasks.task import Examples, Metrics, Task

__all__ = ["Classification", "Examples", "LanguageModeling", "Metrics", "Task", "create", "list_tasks", "lookup", "register"]
