#!/bin/sh
# local-attention 1.11.2, torch 2.13.0 (CPU): LocalAttention(dim=...), whose queries and keys are rotated by their positions, not causal, so that the window
# before, the own and the next are seen. Expected: positions are relative to the token itself: with equal queries and keys everywhere it has the largest
# weight on itself, as it has with causal=True. Seen: queries get the positions of the last of the three windows, a window too far: the largest weight is
# window_size tokens ahead, where the token sees its own place as one window_size back; the two directions are not alike. performer-pytorch's local heads and
# other packages' are made of it. Who ports weights must turn queries by their place plus window_size.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy local-attention==1.11.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from local_attention import LocalAttention

window, length, found = 8, 40, {}
q = torch.ones(1, length, 32)
for name, options in {"causal": {"causal": True}, "both ways": {}, "exact window": {"exact_windowsize": True}, "window alone": {"look_forward": 0}}.items():
    attention = LocalAttention(window_size=window, dim=32, scale=1.0, **options)
    weights = attention(q, q, torch.eye(length)[None])[0]
    found[name] = sorted(set((weights.argmax(-1) - torch.arange(length))[window:-2 * window].tolist()))
print("local-attention", importlib.metadata.version("local-attention"), "distance of the largest weight of tokens with a window on either side:", found)
sys.exit(not (found["causal"] == found["window alone"] == [0] and found["both ways"] == found["exact window"] == [window]))
PYTHON
