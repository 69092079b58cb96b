"""Records trees of ListOps and what they come to: ``python -m tests.references.listops CLONE`` writes listops.npz
beside this file.

CLONE is a checkout of github.com/google-research/long-range-arena (Apache-2.0, commit cd31e5c). Its generator
(lra_benchmarks/data/listops.py) runs without what it imports to write files. Kept are trees of at most 60 tokens as its
files hold them, with their parentheses, their values, and the lengths that it counts of 500 trees that it keeps.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np

from tests.references import recording

PATH = Path(__file__).with_suffix(".npz")
TREES, LENGTHS = 40, 500


def main(clone: Path) -> None:
    flags = {f"DEFINE_{kind}": lambda *_, **__: None for kind in ("string", "integer")} | {"FLAGS": None}
    recording.stand_in({"absl": {}, "absl.app": {}, "absl.flags": flags, "tensorflow": {}, "tensorflow.compat": {}})
    recording.stand_in({"tensorflow.compat.v1": {}})
    sys.modules["absl"].app, sys.modules["absl"].flags = sys.modules["absl.app"], sys.modules["absl.flags"]
    authors = recording.module_of(clone / "lra_benchmarks" / "data" / "listops.py")
    random.seed(0)
    texts, values, lengths = [], [], []
    while len(texts) < TREES or len(lengths) < LENGTHS:
        tree, length = authors.generate_tree(1, 10, 10)
        if 10 < length < 60 and len(texts) < TREES:
            texts.append(authors.to_string(tree))
            values.append(int(authors.to_value(tree)))
        if 500 < length < 2000:
            lengths.append(length)
    np.savez_compressed(PATH, texts=np.array(texts), values=np.array(values), lengths=np.array(lengths[:LENGTHS]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
