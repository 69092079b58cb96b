#!/bin/sh
# LRU-pytorch 0.1.3, torch 2.13.0 (CPU): LRU (arXiv:2303.06349) called with state=, for a batch. Expected: each row of the batch begins in that state, or a
# state for each row is asked for. Seen: the first row begins in it, all others in 0; a row's outputs depend on its place in the batch. The state after the
# text is not given back: the attribute state is 0 after each call, so that a text can't be read in parts.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy LRU-pytorch==0.1.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from LRU_pytorch import LRU

torch.manual_seed(0)
layer = LRU(4, 4, 8)
x, state = torch.randn(3, 6, 4), torch.complex(torch.randn(8), torch.randn(8))
with torch.no_grad():
    change = (layer(x, state) - layer(x)).abs().amax((1, 2))
    turned = layer(x.flip(0), state).flip(0)
    apart = (turned - layer(x, state)).abs().amax((1, 2))
    after = float(layer.state.abs().max())
    unlike = float((layer(x[0], state) - layer(x, state)[0]).abs().max())
print("LRU-pytorch", importlib.metadata.version("LRU-pytorch"), "effect of the state by row:", change.tolist(), "of the order of rows:", apart.tolist(),
      "state after the call:", after, "alone and in the batch, first row:", unlike)
sys.exit(not (change[0] > 0.1 and change[1:].max() == 0 and apart[0] > 0.1 and apart[2] > 0.1 and after == 0 and unlike < 1e-5))
PYTHON
