#!/bin/sh
# deformable-attention 0.0.20, torch 2.13.0 (CPU): DeformableAttention2D (arXiv:2201.00520) whose offsets are 0, with downsample_factor=1. Expected: keys and
# values are the features of the map itself, as each point of the grid is a place of the map. Seen: the grid is scaled so that its outermost points are the
# centers of the outermost places, but sampled as if they were its edges, so that points lie between places: the map is blurred, and a map of ones is 0.5 at
# its edges and 0.25 at its corners. Where height and width differ, each coordinate is scaled by the other's length: of a map of 4 by 12 or 12 by 4 two thirds
# of the points lie outside and give 0. DeformableAttention1D has the same edges.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy deformable-attention==0.0.20
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from deformable_attention import DeformableAttention1D, DeformableAttention2D

found = {}
with torch.no_grad():
    for shape in ((6,), (6, 6), (4, 12), (12, 4)):
        torch.manual_seed(0)
        kind = DeformableAttention2D if len(shape) == 2 else DeformableAttention1D
        layer = kind(dim=16, dim_head=8, heads=2, downsample_factor=1, offset_kernel_size=1, offset_scale=1).eval()
        for parameter in layer.to_offsets.parameters():
            parameter.zero_()
        seen = []
        layer.to_k.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0][0, 0]))
        x = torch.randn(1, 16, *shape)
        layer(torch.ones_like(x)), layer(x)
        ones, features = seen
        found[shape] = {
            "ones at the corner": round(float(ones[(0,) * len(shape)]), 3), "points with 0": round(float((ones.abs() < 1e-6).float().mean()), 3),
            "apart from the map": round(float((features - x[0, 0]).abs().max() / x.abs().max()), 3),
        }
print("deformable-attention", importlib.metadata.version("deformable-attention"), "by the map's shape:", found)
edges = all(f["ones at the corner"] == (0.5 if len(shape) == 1 else 0.25) and f["apart from the map"] > 0.1 for shape, f in found.items())
sys.exit(not (edges and found[6, 6]["points with 0"] == 0 and found[4, 12]["points with 0"] > 0.5))
PYTHON
