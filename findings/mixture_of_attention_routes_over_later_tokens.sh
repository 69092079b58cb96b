#!/bin/sh
# mixture-of-attention 0.0.25, torch 2.13.0 (CPU): MixtureOfAutoregressiveAttention. Expected: an output depends on its token and those before, as the name
# says. Seen: which queries of a window are routed to the experts is decided over the whole window: a change of token 20 of 30, with windows of 8, changes the
# outputs of earlier tokens by as much as outputs are large, as these lose or gain their places. MixtureOfAttention(local_attn=True) leaves its local
# attention out where a text has at most num_routed_queries tokens: its parameters have no gradient then, and a short text is read by another layer than a
# long one.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy packaging mixture-of-attention==0.0.25
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from mixture_of_attention import MixtureOfAttention, MixtureOfAutoregressiveAttention

torch.manual_seed(0)
sizes = {"dim": 32, "dim_head": 8, "heads": 2, "flash_attn": False, "use_triton": False}
x, earlier = torch.randn(8, 30, 32), []
layer = MixtureOfAutoregressiveAttention(num_routed_queries=4, num_routed_key_values=4, local_attn_window_size=8, **sizes).eval()
other = x.clone()
other[:, 20] += torch.randn(8, 32)
with torch.no_grad():
    y = layer(x)
    change = (layer(other) - y).abs().amax((0, 2))
found = {"changed before token 20": (change[:20] > 1e-4).nonzero().flatten().tolist(), "by": round(float(change[:20].max() / y.abs().max()), 2)}
layer = MixtureOfAttention(num_routed_queries=8, num_routed_key_values=8, local_attn=True, local_attn_window_size=4, **sizes).eval()
for length in (8, 9):
    layer.zero_grad(set_to_none=True)
    layer(x[:, :length]).pow(2).mean().backward()
    found["parameters of the local attention with a gradient", length] = sum(p.grad is not None for p in layer.local_attn.parameters())
print("mixture-of-attention", importlib.metadata.version("mixture-of-attention"), found)
short, long = (found["parameters of the local attention with a gradient", length] for length in (8, 9))
sys.exit(not (found["changed before token 20"] and found["by"] > 0.1 and short == 0 < long))
PYTHON
