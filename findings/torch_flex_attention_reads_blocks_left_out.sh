#!/bin/sh
# torch 2.13.0 (CPU): flex_attention with BlockMask.from_kv_blocks(kv_num_blocks, kv_indices), which says which blocks
# of keys each block of queries reads, as attention to chosen blocks has it (sparse attention by routing or by the
# largest means). Expected: the attention of block_mask.to_dense(), whose sparsity() is 75 % here, as the same blocks
# give it by a mask_mod. Seen: without torch.compile the blocks are not looked at, only the mask_mod, which is not asked
# for: every query reads all keys, the output is that of full attention, and keys that no block names change it. A
# mask_mod that covers less than its blocks is right, one that covers more counts wholly. The one warning is about
# speed.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

size, blocks = 16, 4
generator = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(1, 2, size * blocks, 8, generator=generator) for _ in range(3))
chosen = torch.randint(0, blocks, (1, 2, blocks, 1), generator=generator)  # a block of keys for each block of queries
indices = torch.cat([chosen, (chosen + 1) % blocks, (chosen + 2) % blocks, (chosen + 3) % blocks], -1).int()
numbers = torch.ones(1, 2, blocks, dtype=torch.int32)


def by_blocks(b, h, q_place, k_place):
    return chosen[0, h, q_place // size, 0] == k_place // size


def exact(seen):
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v


def everything(b, h, q_place, k_place):
    return q_place >= 0


masks = {
    "blocks alone": BlockMask.from_kv_blocks(numbers, indices, BLOCK_SIZE=size),
    "blocks, mask_mod of all": BlockMask.from_kv_blocks(numbers, indices, BLOCK_SIZE=size, mask_mod=everything),
    "blocks, mask_mod of them": BlockMask.from_kv_blocks(numbers, indices, BLOCK_SIZE=size, mask_mod=by_blocks),
}
found = {}
for name, mask in masks.items():
    dense = mask.to_dense().bool().repeat_interleave(size, -2).repeat_interleave(size, -1)
    unread = ~dense.any(-2)[..., None]
    with torch.no_grad():
        y = flex_attention(q, k, v, block_mask=mask)
        other = flex_attention(q, k + unread, v, block_mask=mask)
    found[name] = {
        "from the mask's attention": float((y - exact(dense)).abs().max()),
        "from full attention": float((y - exact(torch.ones_like(dense))).abs().max()),
        "change by keys in no block": float((other - y).abs().max()),
        "sparsity": mask.sparsity(),
    }
print("torch", torch.__version__)
for name, values in found.items():
    print(name, {key: round(value, 6) for key, value in values.items()})
right = found.pop("blocks, mask_mod of them")
wrong = all(f["from full attention"] < 1e-5 and f["from the mask's attention"] > 0.1 for f in found.values())
wrong = wrong and all(f["change by keys in no block"] > 0.01 and f["sparsity"] == 75 for f in found.values())
sys.exit(not (wrong and right["from the mask's attention"] < 1e-5 and right["change by keys in no block"] == 0))
PYTHON
