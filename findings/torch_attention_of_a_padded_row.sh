#!/bin/sh
# torch 2.13.0 (CPU): MultiheadAttention in eval mode, for a row of a batch that is all padding (key_padding_mask of True).
# Expected: one result, whether gradients are recorded or not and whether the weights are asked for or not; 0, as
# scaled_dot_product_attention gives, plus the bias of the projection. Seen: with gradients and need_weights=False that; NaN without
# gradients, and NaN with need_weights=True, the default. A model that trains without NaN has them when it is evaluated.
# Rows with something to see agree. Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch

torch.manual_seed(0)
attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
x = torch.randn(2, 5, 8)
padding = torch.tensor([[True] * 5, [False] * 3 + [True] * 2])
found, others = {}, []
for recorded in (True, False):
    for weights in (True, False):
        with torch.set_grad_enabled(recorded):
            y = attention(x, x, x, key_padding_mask=padding, need_weights=weights)[0].detach()
        gone = bool(y[0].isnan().all())
        found[recorded, weights] = "NaN" if gone else float((y[0] - attention.out_proj.bias).abs().max())
        others.append(y[1])
apart = max(float((other - others[0]).abs().max()) for other in others)
print("torch", torch.__version__, "(gradients recorded, weights asked for):", found, "the other row, apart:", apart)
sys.exit(found != {(True, True): "NaN", (True, False): 0.0, (False, True): "NaN", (False, False): "NaN"} or apart > 1e-5)
PYTHON
