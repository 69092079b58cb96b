#!/bin/sh
# flamingo-pytorch 0.1.2, torch 2.13.0 (CPU): MaskedCrossAttention(only_attend_immediate_media=False), for text that sees all images before it, with
# media_locations. Expected: text before the first image sees none, and its output is 0, as with only_attend_immediate_media=True. Seen: it sees the mean of
# all images of the row, which come later: all of its keys are masked with the same large negative number, and the softmax of equal numbers is uniform. A
# change of the second image, at token 6, changes the outputs of tokens 0 to 2 before the first one by as much as they are large, and not those of 3 to 5. A
# model that writes text and images in turn is trained on what it can't know.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy flamingo-pytorch==0.1.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from flamingo_pytorch.flamingo_pytorch import MaskedCrossAttention

torch.manual_seed(0)
text, images = torch.randn(1, 8, 32), torch.randn(1, 2, 3, 32)
places = torch.zeros(1, 8, dtype=torch.bool)
places[0, [3, 6]] = True
other = images.clone()
other[:, 1] = torch.randn(1, 3, 32)
found = {}
with torch.no_grad():
    for immediate in (True, False):
        layer = MaskedCrossAttention(dim=32, dim_head=8, heads=2, only_attend_immediate_media=immediate)
        y = layer(text, images, media_locations=places)
        change = (layer(text, other, media_locations=places) - y).abs().amax(-1)[0]
        found[immediate] = {"output before the first image": round(float(y[0, :3].abs().max()), 3), "change": [round(float(c), 3) for c in change]}
print("flamingo-pytorch", importlib.metadata.version("flamingo-pytorch"),
      "by only_attend_immediate_media, changes by token if the second image changes:", found)
right = max(found[True]["change"][:6]) < 1e-6 and found[True]["output before the first image"] == 0 and max(found[False]["change"][3:6]) < 1e-6
sys.exit(not (right and min(found[False]["change"][:3]) > 0.1 and found[False]["output before the first image"] > 0.1))
PYTHON
