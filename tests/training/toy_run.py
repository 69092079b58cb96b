"""Trains the toy in a process of its own: ``python -m tests.training.toy_run WORKDIR CHANGES_JSON [STOP_AFTER]``.

With STOP_AFTER, the process sends itself SIGTERM once that many training examples have been read.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.training import toy
from training import loop
from training.command import one_message


def run(workdir: str, changes: dict[str, Any], stop: int | None = None) -> dict[str, Any]:
    """Trains, and returns what it came to."""
    task = toy.ToyTask()
    if stop is not None:
        examples, left = task.examples("train"), [stop]
        get = examples.get

        def counted(index, rng):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return get(index, rng)

        examples.get = counted  # type: ignore[method-assign]
    result = loop.train(toy.config(**changes), toy.ToyModel(dropout=0.2), task, Path(workdir))
    return {
        "step": result.step,
        "finished": result.finished,
        "best": result.best and result.best.step,
        "figures": result.figures,
    }


def main() -> None:
    workdir, changes, *stop = sys.argv[1:]
    with one_message():
        print(json.dumps(run(workdir, json.loads(changes), *map(int, stop))))


if __name__ == "__main__":
    main()
