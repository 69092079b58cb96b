"""The interface of an op's implementations: one object with all arguments of a call, after validation.

A subclass for each op declares its arrays, their axes and its options once. A new argument is a new field, which
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
      axes: for each array a word with one letter per axis (:mod:`pallas_kernels.mesh`), or one word for each number of
        axes that it may have.
      results: the axes of the arrays that an implementation returns, always as a tuple; a result that was not requested
        may be None.
    """

    axes: ClassVar[Mapping[str, str]]

    @property
    def results(self) -> tuple[str, ...]:
        raise NotImplementedError(f"{type(self).__name__} does not define results")

    @property
    def arrays(self) -> dict[str, tuple[Any, str]]:
        """The arrays that are not None, by name, each with its axes."""
        given = {name: (getattr(self, name), words.split()) for name, words in self.axes.items()}
        return {
            name: (x, next(word for word in words if len(word) == x.ndim))
            for name, (x, words) in given.items()
            if x is not None
        }

    def replace(self, **changes: Any) -> Self:
        """The same call with some arguments changed."""
        return dataclasses.replace(self, **changes)
