#!/bin/sh
# minGRU-pytorch 0.2.1, torch 2.13.0 (CPU): minLSTM reads a text in two parts, the second with the prev_hidden that the first returned. Expected: the outputs
# of the whole text, as minGRU gives. Seen: so if the second part is one token; if it is longer, the state goes once more through the function that makes
# candidates positive, which adds 0.5 to it, and the outputs after it are too large by what of it is not forgotten. No error. A prompt in chunks is answered
# from another state than the same prompt at once.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy minGRU-pytorch==0.2.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from minGRU_pytorch.minGRU import minGRU
from minGRU_pytorch.minLSTM import minLSTM

torch.manual_seed(0)
x, found = torch.randn(2, 24, 8), {}
with torch.no_grad():
    for name, layer in (("minGRU", minGRU(8).eval()), ("minLSTM", minLSTM(8).eval())):
        whole = layer(x)
        for rest in (1, 2, 12):
            _, state = layer(x[:, :-rest], return_next_prev_hidden=True)
            y = layer(x[:, -rest:], prev_hidden=state)
            found[name, rest] = float((y - whole[:, -rest:]).abs().max() / whole.abs().max())
        # Where the gates keep the state, it must come back as it is.
        weight = (layer.to_hidden_and_gate if name == "minGRU" else layer.to_hidden_and_f_i_gate).weight
        weight.zero_()
        weight[8:16, 0] = -60 if name == "minGRU" else 60
        kept = layer(torch.eye(8)[:1].expand(1, 2, 8), prev_hidden=torch.full((1, 1, 8), 0.25))
        found[name, "a state of 0.25"] = round(float(kept[0, 0, 0]), 4)
print("minGRU-pytorch", importlib.metadata.version("minGRU-pytorch"), "relative differences by tokens of the second part:", found)
gru = all(found["minGRU", rest] < 1e-4 for rest in (1, 2, 12)) and found["minGRU", "a state of 0.25"] == 0.25
sys.exit(not (gru and found["minLSTM", 1] < 1e-4 and min(found["minLSTM", 2], found["minLSTM", 12]) > 0.05))
PYTHON
