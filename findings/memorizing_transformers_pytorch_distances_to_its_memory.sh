#!/bin/sh
# memorizing-transformers-pytorch 0.4.1, torch 2.13.0 (CPU): MemorizingTransformer with xl_max_memories of at least the text's length and no kNN layer reads a
# text in two parts, the second with the memories of the first. Expected: the logits of the whole text, as keys of the memory are those of the tokens before
# and the bias is of relative positions. Seen: so with biases of 0 only. The bias counts queries from the start of the memory: after a first part of 12
# tokens, a token 12 back counts as 0 back, and so do all later ones, itself included. Logits are off by a third of the largest.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy memorizing-transformers-pytorch==0.4.1 einops-exts==0.0.4
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from memorizing_transformers_pytorch import MemorizingTransformer

torch.manual_seed(0)
model = MemorizingTransformer(num_tokens=20, dim=32, depth=1, heads=2, dim_head=16, memorizing_layers=(), xl_max_memories=32, xl_memory_layers=(1,)).eval()
text = torch.randint(0, 20, (2, 24))
found = {}
with torch.no_grad():
    for name, scale in (("no bias", 0), ("bias", 1)):
        model.rel_pos_bias.relative_attention_bias.weight.normal_().mul_(scale)
        whole = model(text, [])[0]
        for length in (6, 12):
            first, memories = model(text[:, :length], [])
            second = model(text[:, length:], [], xl_memories=memories)[0]
            errors = ((part - other).abs().max() / whole.abs().max() for part, other in ((first, whole[:, :length]), (second, whole[:, length:])))
            found[name, length] = [round(float(error), 5) for error in errors]
print("memorizing-transformers-pytorch", importlib.metadata.version("memorizing-transformers-pytorch"), "relative errors of the parts:", found)
right = all(max(found["no bias", length]) < 1e-4 and found["bias", length][0] < 1e-4 for length in (6, 12))
sys.exit(not (right and min(found["bias", length][1] for length in (6, 12)) > 0.03))
PYTHON
