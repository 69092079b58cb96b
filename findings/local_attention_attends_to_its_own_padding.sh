#!/bin/sh
# local-attention 1.11.2, nystrom-attention 0.0.14, h-transformer-1d 0.1.9, torch 2.13.0 (CPU): layers that pad a text to a multiple of their window, to one
# of their landmarks or to a power of two by themselves, called without a mask. Expected: what they would give for a mask of True for every token, as no token
# of the text is padding. Seen: the zeros that were added are attended to, as keys of score 0 and value 0: outputs are off by 1 to 14 % of the largest,
# depending on the text's length. LocalAttention(autopad=True) where it isn't causal, NystromAttention and HAttention1D. Lengths that need no padding are
# right. mask=torch.ones(batch, length, dtype=bool) serves.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy local-attention==1.11.2 nystrom-attention==0.0.14 h-transformer-1d==0.1.9
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from h_transformer_1d.h_transformer_1d import HAttention1D
from local_attention import LocalAttention
from nystrom_attention import NystromAttention

torch.manual_seed(0)
local = LocalAttention(window_size=16, autopad=True)
layers = {
    "local-attention": lambda x, mask=None: local(x, x, x, mask=mask),
    "nystrom-attention": NystromAttention(dim=16, dim_head=8, heads=2, num_landmarks=16).eval(),
    "h-transformer-1d": HAttention1D(16, heads=2, dim_head=8, block_size=8).eval(),
}
found = {}
with torch.no_grad():
    for name, layer in layers.items():
        for length in (64, 65, 100):
            x = torch.randn(1, length, 16)
            with_mask = layer(x, mask=torch.ones(1, length, dtype=torch.bool))
            found[name, length] = round(float((layer(x) - with_mask).abs().max() / with_mask.abs().max()), 7)
versions = {name: importlib.metadata.version(name) for name in layers}
print(versions, "apart from a mask of True, of the largest output, by length:", found)
sys.exit(not all(found[name, 64] < 1e-5 and min(found[name, 65], found[name, 100]) > 0.01 for name in layers))
PYTHON
