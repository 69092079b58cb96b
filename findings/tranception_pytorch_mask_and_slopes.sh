#!/bin/sh
# tranception-pytorch 0.0.8, torch 2.13.0 (CPU): Tranception. Expected: forward(x, mask=mask) hides what is masked; the learned slopes of its position bias,
# which are parameters, are those of the weights that were loaded last. Seen: the mask has no effect. The bias is computed in the first call and kept: a model
# that was called once and then gets other weights by load_state_dict answers with the slopes of its start, and so does one whose slopes an optimizer moves
# after a first evaluation without gradients, in which they have no gradient ever. A new model with the same weights gives other logits. No error or warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy tranception-pytorch==0.0.8
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from tranception_pytorch import Tranception

torch.manual_seed(0)
sizes = {"dim": 32, "depth": 2, "heads": 4, "dim_head": 8}
text, other = torch.randint(0, 21, (2, 1, 24)).unbind(0)
mask = torch.ones(1, 24, dtype=torch.bool)
mask[:, 12:] = False
found = {}
with torch.no_grad():
    model = Tranception(**sizes, causal=False).eval()
    y = model(text)
    found["effect of a mask"] = float((model(text, mask=mask) - y).abs().max())
    weights = Tranception(**sizes, causal=False).state_dict()
    for name in weights:
        if name.endswith("slopes"):
            weights[name] *= 30
    model.load_state_dict(weights)
    fresh = Tranception(**sizes, causal=False).eval()
    fresh.load_state_dict(weights)
    found["called before, and new"] = round(float((model(text) - fresh(text)).abs().max() / fresh(text).abs().max()), 3)
model.train()
model(text).square().mean().backward()
slopes = [parameter for name, parameter in model.named_parameters() if name.endswith("slopes")]
found["slopes with a gradient"] = sum(slope.grad is not None for slope in slopes), len(slopes)
print("tranception-pytorch", importlib.metadata.version("tranception-pytorch"), found)
sys.exit(not (found["effect of a mask"] == 0 and found["called before, and new"] > 0.02 and found["slopes with a gradient"] == (0, 8)))
PYTHON
