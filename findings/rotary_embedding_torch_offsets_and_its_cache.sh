#!/bin/sh
# rotary-embedding-torch 0.9.1, torch 2.13.0 (CPU): RotaryEmbedding with freqs_for="lang", the default, and get_axial_freqs(8, 8, offsets=(3, 0)), angles of
# a map that begins at row 3. Expected: rows 3 to 10, columns 0 to 7. Seen: angles are kept by the length of an axis alone. On a new
# object columns are counted from 3, too, and so is the text that rotate_queries_or_keys turns afterwards; on one that was used before for 8 places or more,
# the offsets have no effect. No error. With freqs_for="pixel" or cache_if_possible=False all are right.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy rotary-embedding-torch==0.9.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from rotary_embedding_torch import RotaryEmbedding


def firsts(angles):
    """The first row and column: the first frequency is 1, so that an angle is a position."""
    return float(angles[0, 0, 0]), float(angles[0, 0, 32])


x = torch.ones(1, 1, 8, 32)
plain = RotaryEmbedding(dim=32).rotate_queries_or_keys(x)
new = RotaryEmbedding(dim=32)
used = RotaryEmbedding(dim=32)
used.rotate_queries_or_keys(x)
found = {
    "new": firsts(new.get_axial_freqs(8, 8, offsets=(3, 0))),
    "used": firsts(used.get_axial_freqs(8, 8, offsets=(3, 0))),
    "without its cache": firsts(RotaryEmbedding(dim=32, cache_if_possible=False).get_axial_freqs(8, 8, offsets=(3, 0))),
    "a text after it": float((new.rotate_queries_or_keys(x) - plain).abs().max()),
}
print("rotary-embedding-torch", importlib.metadata.version("rotary-embedding-torch"), "first row and column of (3, 0):", found)
sys.exit(not (found["new"] == (3, 3) and found["used"] == (0, 0) and found["without its cache"] == (3, 0) and found["a text after it"] > 1))
PYTHON
