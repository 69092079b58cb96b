#!/bin/sh
# rotary-embedding-torch 0.9.1, torch 2.13.0 (CPU): RotaryEmbedding(use_xpos=True) and rotate_queries_with_cached_keys(q, k), which its README gives for
# the newest query beside all keys. Expected: the scores of that query which rotate_queries_and_keys gives for the whole text, as without xPos.
# Seen: exponents are counted from the middle of the queries for these and from the middle of the keys for those, so that each pair of
# features has a factor of its own, to the power of half the text's length: with 1024 keys scores are off by 0.37 of the largest, and a tenth of the softmax
# is elsewhere. cache_if_possible=False, used here, changes nothing. Equal numbers of queries and keys agree.
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

torch.manual_seed(0)
q, k = torch.randn(2, 1, 4, 1024, 64)
found = {}
for use_xpos in (False, True):
    for queries in (1, 1024):
        def new():
            return RotaryEmbedding(dim=64, use_xpos=use_xpos, cache_if_possible=False)

        whole_q, whole_k = new().rotate_queries_and_keys(q, k) if use_xpos else map(new().rotate_queries_or_keys, (q, k))
        part_q, part_k = new().rotate_queries_with_cached_keys(q[:, :, -queries:], k)
        whole, part = (a[:, :, -1:] @ b.mT for a, b in ((whole_q, whole_k), (part_q, part_k)))
        weights = [(scores / 8).softmax(-1) for scores in (whole, part)]
        found["xPos" if use_xpos else "plain", queries] = {
            "apart": float((part - whole).abs().max() / whole.abs().max()), "size": float(part.abs().mean() / whole.abs().mean()),
            "weights apart": float((weights[0] - weights[1]).abs().sum(-1).max() / 2),
        }
print("rotary-embedding-torch", importlib.metadata.version("rotary-embedding-torch"), "by the number of queries beside 1024 keys:", found)
wrong = found.pop(("xPos", 1))
sys.exit(not (wrong["apart"] > 0.2 and wrong["weights apart"] > 0.05 and max(f["apart"] for f in found.values()) < 1e-4))
PYTHON
