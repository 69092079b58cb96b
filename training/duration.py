"""Durations as text: "20 epochs", "500 steps", "10000 examples".

Everything is counted in examples, the one unit that depends neither on the batch size nor on the size of the data set.
An event "every D" happens after the step that passes a multiple of D examples.
"""

from __future__ import annotations

import dataclasses
import math
import re

_FORM = re.compile(r"\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*(epoch|step|example)s?\s*")


@dataclasses.dataclass(frozen=True)
class Clock:
    """Converts durations for one run.

    Attributes:
      batch_size: examples in a step.
      epoch: examples in an epoch.
    """

    batch_size: int
    epoch: int

    def examples(self, duration: str, field: str) -> int:
        """Number of examples in ``duration``; 0 for "0" and for an empty string, which means "never".

        Args:
          duration: a number and one of epochs, steps, examples.
          field: the config field it comes from, for the message.

        Raises:
          ValueError: ``duration`` can't be read.
        """
        if not duration or str(duration) == "0":
            return 0
        form = _FORM.fullmatch(str(duration))
        if not form:
            raise ValueError(
                f'{field}={duration!r} is not a duration: write "20 epochs", "500 steps" or "10000 examples"'
            )
        unit = {"epoch": self.epoch, "step": self.batch_size, "example": 1}[form[2]]
        return math.ceil(float(form[1]) * unit)

    def steps(self, duration: str, field: str) -> int:
        """Number of steps that covers ``duration``.

        Raises:
          ValueError: as :meth:`examples`.
        """
        return math.ceil(self.examples(duration, field) / self.batch_size)

    def times(self, step: int, every: int) -> int:
        """How many multiples of ``every`` examples (0 = never) lie in the first ``step`` steps."""
        return step * self.batch_size // every if every > 0 else 0

    def due(self, step: int, every: int) -> bool:
        """Whether an event every ``every`` examples (0 = never) happens once ``step`` steps are done."""
        return step > 0 and self.times(step, every) > self.times(step - 1, every)
