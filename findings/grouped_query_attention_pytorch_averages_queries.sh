#!/bin/sh
# grouped-query-attention-pytorch 0.3.0, torch 2.13.0 (CPU): MultiheadGQA. Expected: need_weights=True with average_attn_weights=True gives the mean over
# heads, (batch, queries, keys), as torch.nn.MultiheadAttention's, whose names these are; dropout=0.5 drops weights in training. Seen: the mean is over the
# queries, (batch, keys, heads), which has the right number of axes and, with as many heads as keys, the right shape; and dropout is kept and never used, so
# that two calls in training agree.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy einops==0.6.1
"$folder/venv/bin/pip" install --quiet --no-deps grouped-query-attention-pytorch==0.3.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from grouped_query_attention_pytorch.attention import MultiheadGQA

torch.manual_seed(0)
layer = MultiheadGQA(embed_dim=64, query_heads=8, kv_heads=4, dropout=0.5).train()
x = torch.randn(2, 8, 64)
with torch.no_grad():
    weights = layer(x, x, x, need_weights=True)[1]
    mean = layer(x, x, x, need_weights=True, average_attn_weights=True)[1]
    same = bool((layer(x, x, x)[0] == layer(x, x, x)[0]).all())
apart = {name: float((mean - weights.mean(axis)).abs().max()) for name, axis in (("of heads", -1), ("of queries", 1))}
sums = float((mean.sum(-1) - 1).abs().max())
print("grouped-query-attention-pytorch", importlib.metadata.version("grouped-query-attention-pytorch"), tuple(weights.shape), tuple(mean.shape))
print("apart from the mean:", apart, "rows' sums less 1:", sums, "two calls in training agree:", same)
sys.exit(not (apart["of queries"] < 1e-6 and apart["of heads"] > 0.01 and sums > 0.01 and same))
PYTHON
