#!/bin/sh
# vit-pytorch 1.26.14, torch 2.13.0 (CPU): CrossFormer's dynamic position bias (arXiv:2108.00154), an MLP of the offset between two places of a window.
# Expected: the pair of places with offset (y, x) has the MLP's value at (y, x). Seen: values are computed for offsets from -w to w, and looked up as if they
# were from 1 - w to w - 1: with windows of 4 a place has for itself the value of (-2, 2), and steps of one place to the right at a row's end jump to another
# row of the table. The values are of distinct offsets, so that a model can learn with them, but nearby offsets are not near for the MLP, and weights of the
# authors' code give another bias.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy einops==0.8.2
"$folder/venv/bin/pip" install --quiet --no-deps vit-pytorch==1.26.14
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import importlib.util
import sys

import torch

# The package imports torchvision; the model needs this file alone.
spec = importlib.util.spec_from_file_location("crossformer", str(importlib.metadata.distribution("vit-pytorch").locate_file("vit_pytorch/crossformer.py")))
crossformer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(crossformer)
window = 4
layer = crossformer.Attention(dim=32, attn_type="short", window_size=window).eval()
asked = []
layer.dpb.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
with torch.no_grad():
    layer(torch.randn(1, 32, window, window))
places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"), -1).reshape(-1, 2)
offsets = places[:, None] - places[None]
used = asked[0][layer.rel_pos_indices].long()
right = float((used == offsets).all(-1).float().mean())
own = sorted({tuple(pair.tolist()) for pair in used.diagonal().T})
row = [tuple(pair.tolist()) for pair in used[0, :4]]
print("vit-pytorch", importlib.metadata.version("vit-pytorch"), "pairs with the value of their offset:", right, "offset asked for a place itself:", own,
      "and for the first place to those of its row:", row, "of", [tuple(pair.tolist()) for pair in offsets[0, :4]])
sys.exit(not (right < 0.05 and own == [(-2, 2)]))
PYTHON
