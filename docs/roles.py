"""References of docstrings, such as ``:class:`Name```, as code in the reference's pages (an extension of griffe)."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|mod|meth|attr|data):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Rewrites the docstring of everything that is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
