#!/bin/sh
# glom-pytorch 0.0.14, torch 2.13.0 (CPU): ConsensusAttention(attend_self=False), the default of Glom as consensus_self=False. Expected: a column attends to
# the others, to itself with next to nothing, as in the Reformer, from where this is taken: its own score there is replaced by -50000. Seen: it is replaced by
# -0.0005, a score like any other. Of 16 columns each gets a sixteenth of its consensus from itself; with attend_self=True more. With local_consensus_radius=1
# it is a quarter.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy glom-pytorch==0.0.14
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from glom_pytorch.glom_pytorch import ConsensusAttention

torch.manual_seed(0)
levels = torch.randn(2, 16, 3, 64)
found = {}
for radius in (0, 1):
    for own in (True, False):
        layer, weights = ConsensusAttention(4, attend_self=own, local_consensus_radius=radius), []
        softmax = torch.Tensor.softmax
        torch.Tensor.softmax = lambda x, **options: weights.append(softmax(x, **options)) or weights[-1]
        layer(levels)
        torch.Tensor.softmax = softmax
        found[radius, own] = round(float(weights[0].diagonal(dim1=-2, dim2=-1).mean()), 4)
print("glom-pytorch", importlib.metadata.version("glom-pytorch"), "a column's weight for itself, by (radius, attend_self):", found)
sys.exit(not (0.03 < found[0, False] < found[0, True] and 0.1 < found[1, False] < found[1, True]))
PYTHON
