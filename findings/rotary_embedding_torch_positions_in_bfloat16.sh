#!/bin/sh
# rotary-embedding-torch 0.9.1, torch 2.13.0 (CPU): RotaryEmbedding.rotate_queries_or_keys of queries in bfloat16. Expected: angles of float32, rounded
# at the end, as its parameters are float32 and autocast is turned off inside. Seen: positions are counted in the queries' type, where 257 is
# 256: places 512 and 513 of the same vector are turned by the same angle, and outputs are off by up to twice a feature. The angles are kept for later calls,
# so that queries in float32 are turned wrongly as well until a longer text comes. float16 has the same from 2048 on. Queries cast to float32
# before and back after are right, if nothing was turned in half precision before.
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

x = torch.ones(1, 1, 1024, 32)
exact = RotaryEmbedding(dim=32).rotate_queries_or_keys(x)
found = {"rounding alone": float((exact.bfloat16().float() - exact).abs().max())}
for dtype in (torch.bfloat16, torch.float16):
    rotary = RotaryEmbedding(dim=32)
    narrow = rotary.rotate_queries_or_keys(x[:, :, :600].to(dtype)).float()
    after = rotary.rotate_queries_or_keys(x[:, :, :600])
    off = (narrow - exact[:, :, :600]).abs().amax((0, 1, 3))
    same = bool((narrow[0, 0, 512] == narrow[0, 0, 513]).all())
    first = int((off > 0.1).nonzero()[0]) if off.max() > 0.1 else None
    found[str(dtype)] = {
        "off": float(off.max()), "first place": first, "512 is 513": same, "float32 after it": float((after - exact[:, :, :600]).abs().max()),
    }
print("rotary-embedding-torch", importlib.metadata.version("rotary-embedding-torch"), found)
wrong, right = found["torch.bfloat16"], found["torch.float16"]
same = wrong["off"] > 1 and wrong["512 is 513"] and wrong["first place"] == 257 and wrong["float32 after it"] > 1
sys.exit(not (same and right["off"] < 0.01 and found["rounding alone"] < 0.01))
PYTHON
