#!/bin/sh
# token-shift-gpt 0.0.2, torch 2.13.0 (CPU): shift_tokens(x, 3), which replaces parts of a token's features by means over the token before it, the two before
# that, and the four before those. Expected: means, so that a text of ones gives ones wherever there is something to average. Seen: the number of tokens is
# one too small until the window is full: the first mean of each window is divided by 1e-5, so that tokens 1, 2 and 4 have features of 100,000, and those
# after it are 2 for 1, 1.5 and 1.33. In the models these are the gates of the first tokens of every text. Once the window is full the means are right.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy token-shift-gpt==0.0.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from token_shift_gpt.token_shift_gpt import shift_tokens

torch.manual_seed(0)
x = torch.ones(1, 12, 8)
parts = shift_tokens(x, 3)[0, :, ::2].T
found = {f"over {width}": [round(float(a), 3) for a in part] for width, part in zip((1, 2, 4, "none"), parts)}
print("token-shift-gpt", importlib.metadata.version("token-shift-gpt"), "means of ones by token:", found)
spikes = [int(part.argmax()) for part in parts[:3]]
full = all(float((part[4 * width:] - 1).abs().max()) < 1e-4 for part, width in zip(parts[:2], (1, 2)))
sys.exit(not (spikes == [1, 2, 4] and all(float(part.max()) > 9e4 for part in parts[:3]) and full and abs(found["over 4"][5] - 2) < 1e-3))
PYTHON
