#!/bin/sh
# n-grammer-pytorch 0.0.14, torch 2.13.0 (CPU): VQNgrammer(x, mask=mask) in training. Expected: what is masked does not move the clusters of the quantization,
# and a cluster that no token chooses stays where it is. Seen: masked tokens are counted like others, so that means move to the padding; and a cluster without
# tokens is moved toward 0, by 1 - decay in each call: after 100 calls with decay=0.9 nothing is left of it, and tokens of small norm choose it.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy n-grammer-pytorch==0.0.14
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from n_grammer_pytorch import VQNgrammer

found = {}
generator = torch.Generator().manual_seed(0)
text, mask = torch.randn(2, 32, 32, generator=generator), torch.ones(2, 32, dtype=torch.bool)
mask[:, 16:] = False
means = {}
for padding in (0.0, 5.0):
    torch.manual_seed(0)
    model = VQNgrammer(num_clusters=64, dim_per_head=16, num_heads=2, ngram_vocab_size=512, ngram_emb_dim=8, decay=0.9).train()
    start = model.vq.means.clone()
    x = torch.where(mask[..., None], text, torch.full_like(text, padding))
    with torch.no_grad():
        for _ in range(100):
            model(x, mask=mask)
    means[padding] = model.vq.means
    ids = model.eval().vq(x)
norms = means[5.0].norm(dim=-1) / start.norm(dim=-1)
found["means moved by the padding"] = round(float((means[5.0] - means[0.0]).abs().max()), 2)
found["clusters with less than 0.001 of their norm, of 128"] = int((norms < 1e-3).sum())
found["clusters chosen by the text"] = sum(len(set(ids[..., head][mask].tolist())) for head in range(2))
print("n-grammer-pytorch", importlib.metadata.version("n-grammer-pytorch"), found)
sys.exit(not (found["means moved by the padding"] > 1 and found["clusters with less than 0.001 of their norm, of 128"] > 50))
PYTHON
