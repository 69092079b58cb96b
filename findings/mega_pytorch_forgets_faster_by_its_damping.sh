#!/bin/sh
# Mega-pytorch 0.1.0, torch 2.13.0 (CPU): the damped moving average of MEGA (arXiv:2209.10655), h = a x + (1 - a d) h of a and d between 0 and 1. Expected: a
# step keeps 1 - a d of the state, so that damping makes the memory longer than 1 - a. Seen: it keeps (1 - a) d, which damping makes shorter: with a = d = 0.5
# a quarter is left after a step in place of three quarters, and after ten steps 1e-6 in place of 0.06. In no setting can its memory be longer than 1 - a, and
# parameters of the paper's code mean another decay in it. gated-state-spaces-pytorch's MHESA has the same.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy scipy Mega-pytorch==0.1.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from mega_pytorch.mega_pytorch import MultiHeadedEMA

found = {}
for a, d in ((0.5, 0.5), (0.3, 0.9), (0.2, 0.3)):
    layer = MultiHeadedEMA(dim=1, heads=1)
    x = torch.zeros(1, 8, 1)
    x[0, 0] = 1
    with torch.no_grad():
        for parameter, value in zip((layer.expansion, layer.reduction), (1, 1)):
            parameter.fill_(value)
        for parameter, value in ((layer.alphas, a), (layer.dampen_factors, d)):
            parameter.fill_(torch.logit(torch.tensor(value)))
        response = layer(x).flatten()
    found[a, d] = {"kept": round(float(response[3] / response[2]), 4), "1 - a d": round(1 - a * d, 4), "(1 - a) d": round((1 - a) * d, 4)}
print("Mega-pytorch", importlib.metadata.version("Mega-pytorch"), "of the state after a step, by a and d:", found)
sys.exit(not all(abs(f["kept"] - f["(1 - a) d"]) < 1e-3 < 0.05 < abs(f["kept"] - f["1 - a d"]) for f in found.values()))
PYTHON
