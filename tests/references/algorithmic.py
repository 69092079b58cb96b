"""Records inputs and answers of the algorithmic problems: ``python -m tests.references.algorithmic CLONE`` writes
algorithmic.npz beside this file.

CLONE is a checkout of github.com/google-deepmind/randomized_positional_encodings (Apache-2.0, commit e8c6474) in a
folder of that name. Its tasks run without the packages that they use for annotations and progress alone. Kept are a few
inputs of each problem at some lengths, and what the authors' code answers: for problems with a stop, up to it.
"""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tasks.algorithmic import PROBLEMS, STOP
from tests.references import recording

PATH = Path(__file__).with_suffix(".npz")
LENGTHS, BATCH = (1, 2, 3, 4, 5, 8, 11, 33), 6
OPTIONS: dict[str, dict[str, Any]] = {
    "modular_arithmetic": {"modulus": 5},
    "modular_arithmetic_brackets": {"modulus": 5, "mult": True},
    "solve_equation": {"modulus": 5},
    "reverse_string": {"vocab_size": 2},
    "duplicate_string": {"vocab_size": 2},
    "odds_first": {"vocab_size": 2},
    "bucket_sort": {"vocab_size": 5},
}
"""As in the authors' experiments/constants.py."""


def _arrays(convert: Any, tree: Any, top_down: bool) -> Any:
    del top_down
    if isinstance(tree, dict):
        return {name: _arrays(convert, part, False) for name, part in tree.items()}
    return convert(tree)


def main(clone: Path) -> None:
    sys.path.insert(0, str(clone.resolve().parent))
    recording.stand_in({"chex": {"Array": Any, "PRNGKey": Any}, "tqdm": {}, "tree": {"traverse": _arrays}})
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    found = {}
    for number, (name, problem) in enumerate(PROBLEMS.items()):
        module = importlib.import_module(f"randomized_positional_encodings.tasks.{problem.level}.{name}")
        task = getattr(module, "".join(word.capitalize() for word in name.split("_")))(**OPTIONS.get(name, {}))
        for length in (n for n in LENGTHS if n >= problem.shortest):
            # Some tasks seed NumPy by the first word of the key, which is 0 in those of small numbers.
            key = np.asarray(jax.random.PRNGKey(100 * number + length))[::-1]
            batch = task.sample_batch(key, BATCH, length)
            given, answer = (np.argmax(batch[part], -1).astype(np.int8) for part in ("input", "output"))
            answer = answer.reshape(BATCH, -1)
            if problem.answers == 3:  # zeros follow the stop
                assert all(not row[row.tolist().index(STOP) + 1 :].any() for row in answer)
            found |= {f"{name}/{length}/given": given, f"{name}/{length}/answer": answer}
            assert answer.shape[1] == problem.size(length)
            assert (task.input_size, task.output_size) >= (problem.symbols, problem.answers)
    np.savez_compressed(PATH, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
