"""Shows references in docstrings, such as ``:class:`Name```, as code in the API reference (a griffe extension)."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|mod|meth|attr|data):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Rewrites the docstring of every object that griffe reads."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
