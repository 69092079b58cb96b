#!/bin/sh
# memorizing-transformers-pytorch 0.4.1, torch 2.13.0 (CPU): KNNMemory(max_memories=64), to which keys and values are added 20 at a time, as the layers do.
# Expected: a search with keys of the newest 20 returns them, also after the memory is full, which forgets the oldest. Seen: so up to 60. Then the index is
# emptied and counts from 0 again, while the place in the table of keys and values goes on, so that a search returns what lies at other places: of the newest
# keys none finds itself, ever after, and those returned are unlike the query. A text longer than max_memories attends to wrong memories without an error.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy memorizing-transformers-pytorch==0.4.1 einops-exts==0.0.4 faiss-cpu==1.15.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import os
import sys
import tempfile

import torch
from memorizing_transformers_pytorch import KNNMemory

torch.manual_seed(0)
keys = torch.nn.functional.normalize(torch.randn(1, 200, 16), dim=-1)
found = {}
with tempfile.TemporaryDirectory() as folder:
    for most in (64, 1000):
        memory = KNNMemory(dim=16, max_memories=most, num_indices=1, memmap_filename=os.path.join(folder, str(most)), multiprocessing=False)
        for start in range(0, 200, 20):
            newest = keys[:, start : start + 20]
            memory.add(torch.stack((newest, newest), dim=2))
            pairs, mask = memory.search(newest, 1)
            likeness = (pairs[:, :, 0, 0] * newest).sum(-1)
            found[most, start + 20] = int((likeness > 0.999).sum()), round(float(likeness.mean()), 2)
print("memorizing-transformers-pytorch", importlib.metadata.version("memorizing-transformers-pytorch"), "of the newest 20, how many find themselves, and",
      "the cosine to what is found, by (most, added):", found)
kept = all(found[most, added][0] >= 15 for most, added in found if most == 1000 or added <= 60)
sys.exit(not (kept and all(found[64, added][0] <= 5 and found[64, added][1] < 0.6 for added in range(80, 201, 20))))
PYTHON
