"""What an op's implementations take: one object with all arguments of a call, after its checks.

A subclass for each op names its arrays, their axes, and its options once; an argument more is a field more, and
concerns only the implementations that read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """The arguments of a call: arrays, or None, and options.

    Attributes:
      axes: of each array, a letter for each axis (:mod:`pallas_kernels.mesh`); a word for each number of axes it may
        have.
      results: the axes of the arrays that an implementation returns, always as a tuple; for one that was not asked for
        it may return None.
    """

    axes: ClassVar[Mapping[str, str]]
    results: ClassVar[tuple[str, ...]]

    @property
    def arrays(self) -> dict[str, tuple[Any, str]]:
        """The arrays that are given, by name, and their axes."""
        given = {name: (getattr(self, name), words.split()) for name, words in self.axes.items()}
        return {
            name: (x, next(word for word in words if len(word) == x.ndim))
            for name, (x, words) in given.items()
            if x is not None
        }

    def replace(self, **changes: Any) -> Self:
        """The same call with some arguments changed."""
        return dataclasses.replace(self, **changes)
