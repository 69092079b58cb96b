#!/bin/sh
# omninet-pytorch 0.0.6, torch 2.13.0 (CPU). Expected: Omninet(pool_layer_tokens_every=n) pools the tokens of the last n layers after layers n, 2n and so on,
# and a call leaves its input as it was. Seen: it pools after all layers but those: after 1, 3 and 5 of 6 for n = 2, after 1, 2, 4 and 5 for n = 3 and never
# for n = 1. OmninetCausal adds its position embedding to the tensor it is given: the same tensor gives other outputs in a second call, and whatever else
# reads it, such as a residual around the model, has it added too.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy omninet-pytorch==0.0.6 performer-pytorch==1.1.4 local-attention==1.11.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from omninet_pytorch import Omninet, OmninetCausal

found = {}
for every in (1, 2, 3):
    for kind in (Omninet, OmninetCausal):
        model = kind(dim=16, depth=6, dim_head=8, heads=2, pool_layer_tokens_every=every)
        found[kind.__name__, every] = [number for number, layer in enumerate(model.layers, 1) if layer[2] is not None]
torch.manual_seed(0)
model, x = OmninetCausal(dim=16, depth=2, dim_head=8, heads=2).eval(), torch.randn(1, 8, 16)
with torch.no_grad():
    before, first, second = x.clone(), model(x), model(x)
found["input changed by"] = round(float((x - before).abs().max()), 2)
found["second call apart"] = round(float((second - first).abs().max() / first.abs().max()), 2)
print("omninet-pytorch", importlib.metadata.version("omninet-pytorch"), "pools after, by pool_layer_tokens_every:", found)
layers = all(found[kind, every] == [n for n in range(1, 7) if n % every] for kind in ("Omninet", "OmninetCausal") for every in (1, 2, 3))
sys.exit(not (layers and found["input changed by"] > 0.5 and found["second call apart"] > 0.1))
PYTHON
