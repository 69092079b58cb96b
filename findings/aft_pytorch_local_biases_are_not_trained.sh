#!/bin/sh
# aft-pytorch 0.2.2, torch 2.13.0 (CPU): training AFTLocal, the attention free transformer with position biases within a window (arXiv:2105.14103). Expected:
# the optimizer changes the biases, as it does AFTFull's. Seen: each call of the layer makes a new parameter of them, with those outside the window at 0,
# which no optimizer was given: it has a gradient, and the biases stay as they were drawn while all other parameters learn. model.parameters() after the first
# call gives the new one, until the next call. No error, no warning. Keys of 89 or more overflow in all its layers, as no largest key is subtracted.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy aft-pytorch==0.2.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from aft_pytorch import AFTFull, AFTLocal

found = {}
for name, layer in (("full", AFTFull(max_seqlen=8, dim=8)), ("local", AFTLocal(max_seqlen=8, dim=8, s=3))):
    torch.manual_seed(0)
    x = torch.randn(4, 8, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    before = {key: value.detach().clone() for key, value in layer.named_parameters()}
    for _ in range(5):
        optimizer.zero_grad()
        (layer(x) - x).square().mean().backward()
        optimizer.step()
    inside = (torch.arange(8)[:, None] - torch.arange(8)).abs() < 3
    changes = {key: float((value - before[key])[inside if key == "wbias" else ...].abs().max()) for key, value in layer.named_parameters()}
    biases = changes.pop("wbias")
    with torch.no_grad():
        layer.to_k.weight.zero_()
        layer.to_k.bias.fill_(89)
        found[name] = biases, max(changes.values()), float(layer.wbias.grad.abs().max()) > 0, bool(layer(x).isnan().any())
print("aft-pytorch", importlib.metadata.version("aft-pytorch"))
print("change of the biases in the window, of the other parameters, whether biases have a gradient, NaN from keys of 89:", found)
sys.exit(not (found["full"][0] > 0.05 and found["local"][0] == 0 and found["local"][1] > 0.05 and found["local"][2] and found["local"][3]))
PYTHON
