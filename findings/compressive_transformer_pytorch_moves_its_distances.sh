#!/bin/sh
# compressive-transformer-pytorch 0.4.0, torch 2.13.0 (CPU): CompressiveTransformer's learned position embeddings, which are relative as in Transformer-XL.
# Expected: the same distance between tokens has the same embedding in all segments. Seen: the row of a distance depends on how full the memory is: with
# segments of 8, a memory of 8 and a compressed one of 4, distance 0 has row 7 in the first segment, row 15 in the second and row 19 of 20 from the third on.
# What a model learns of distances in later segments does not hold in the first two, and a text no longer than a segment, which has no memory, is read with
# rows that in long texts stand for the oldest, compressed memories.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy compressive-transformer-pytorch==0.4.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from compressive_transformer_pytorch import CompressiveTransformer

torch.manual_seed(0)
model = CompressiveTransformer(num_tokens=20, dim=32, seq_len=8, depth=1, mem_len=8, cmem_len=4, cmem_ratio=2, heads=4).eval()
text = torch.randint(0, 20, (1, 5 * 8))
weights = []
model.attn_layers[0].fn.fn.attn_dropout.register_forward_hook(lambda _, inputs, output: weights.append(output[0, 0, -1].log()))
found, memories = [], None
with torch.no_grad():
    for segment in text.split(8, dim=1):
        rows = {}
        for row in range(20):  # which distance from the segment's last token does the row belong to?
            model.pos_emb.zero_()
            before = model(segment, memories=memories) and weights[-1]
            model.pos_emb[:, row] = torch.randn(4, 8)
            after = model(segment, memories=memories) and weights[-1]
            change = after - before
            moved = (change - change.median()).abs() > 1e-3  # the softmax moves all others by the same
            if moved.any():
                rows[len(moved) - 1 - int(moved.nonzero())] = row
        model.pos_emb.zero_()
        memories = model(segment, memories=memories)[1]
        found.append({distance: rows.get(distance) for distance in (0, 1, 7)})
print("compressive-transformer-pytorch", importlib.metadata.version("compressive-transformer-pytorch"), "row of distances 0, 1 and 7, by segment:", found)
expected = [{0: last, 1: last - 1, 7: last - 7} for last in (7, 15, 19, 19, 19)]
sys.exit(found != expected)
PYTHON
