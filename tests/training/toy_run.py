"""Trains the toy in a process of its own: ``python -m tests.training.toy_run WORKDIR CHANGES_JSON [STOP_AFTER]``.

With STOP_AFTER, the process sends itself SIGTERM once that many training examples have been read.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from tests.training import toy
from training import loop
from training.command import one_message


def main() -> None:
    workdir, changes, *stop = sys.argv[1:]
    task = toy.ToyTask()
    if stop:
        examples, left = task.examples("train"), [int(stop[0])]
        get = examples.get

        def counted(index, rng):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return get(index, rng)

        examples.get = counted  # type: ignore[method-assign]
    with one_message():
        result = loop.train(toy.config(**json.loads(changes)), toy.ToyModel(dropout=0.2), task, Path(workdir))
    print(json.dumps({"step": result.step, "finished": result.finished, "best": result.best and result.best.step, "figures": result.figures}))


if __name__ == "__main__":
    main()
