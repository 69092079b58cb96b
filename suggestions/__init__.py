"""What to say of a name that does not exist: near matches first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED = 30


def near(name: str, known: Iterable[str]) -> str:
    """Returns ": did you mean ...?" with the near matches of ``name`` among ``known``, whatever their case, or an empty
    string."""
    cased = {choice.casefold(): choice for choice in known}
    matches = [cased[match] for match in difflib.get_close_matches(name.casefold(), list(cased), n=3, cutoff=0.6)]
    return f": did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a ``kind`` of thing that does not exist under ``name``: near matches, else all there are."""
    choices = sorted(known)
    listed = ", ".join(choices[:_LISTED]) + (", ..." if len(choices) > _LISTED else "")
    hint = near(name, choices) or f": there are: {listed or 'none'}"
    return f"unknown {kind} {name!r}{hint}"
