"""Messages for unknown names: they suggest similar ones first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED, _SUGGESTED = 30, 3
_NEAR = 0.6  # ratio of matching characters
_STEM = 4  # characters of a beginning that count


def near(name: str, known: Iterable[str]) -> str:
    """Returns ": did you mean ...?" with the names in ``known`` that are similar to ``name`` or begin similarly,
    ignoring case, or "" where there are none.
    """
    asked = name.casefold()

    def similarity(choice: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, choice.casefold(), asked).ratio()
        if not _STEM <= len(asked) < len(choice):
            return whole, whole
        return max(whole, difflib.SequenceMatcher(None, choice[: len(asked)].casefold(), asked).ratio()), whole

    ranked = sorted(((similarity(choice), choice) for choice in known), key=lambda pair: pair[0], reverse=True)
    matches = [choice for (best, _), choice in ranked[:_SUGGESTED] if best >= _NEAR]
    return f": did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for an unknown ``name`` of a ``kind`` of thing: it suggests similar names, else lists the known
    ones.
    """
    choices = sorted(known)
    listed = ", ".join(choices[:_LISTED]) + (", ..." if len(choices) > _LISTED else "")
    hint = near(name, choices) or f": there are: {listed or 'none'}"
    return f"unknown {kind} {name!r}{hint}"
