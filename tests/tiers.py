"""Which parameters of a test are quick."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def tiered(values: Iterable[Any], quick: Callable[[Any], bool]) -> list[Any]:
    """``values`` for ``pytest.mark.parametrize``, those that are not ``quick`` marked full."""
    return [
        value
        if quick(value)
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.full)
        for value in values
    ]
