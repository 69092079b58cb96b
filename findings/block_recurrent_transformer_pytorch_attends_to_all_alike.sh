#!/bin/sh
# block-recurrent-transformer-pytorch 0.4.4, torch 2.13.0 (CPU): attention with qk_rmsnorm=True, which its recurrent
# layers always have, and others with all_layers_qk_rmsnorm. Expected: queries and keys of length 1 whose products are
# multiplied by qk_rmsnorm_scale, 8, so that a key can have e^16 the weight of another. Seen: the scale is not used:
# products are divided by the root of the size of a head, as if they were not normalized, so that they lie within 1/8
# for heads of 64 and no key has more than e^(1/4), 1.28, the weight of another at the start, however long queries and
# keys are: attention is all but a mean until the scales of single channels have grown by much. qk_rmsnorm_scale of 0.01
# or 1000 gives the same numbers. No error, no warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 einops==0.8.2 packaging==26.4 beartype==0.23.1 \
    block-recurrent-transformer-pytorch==0.4.4
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import math
import sys

import torch
from block_recurrent_transformer_pytorch import BlockRecurrentTransformer
from block_recurrent_transformer_pytorch.block_recurrent_transformer_pytorch import Attention

torch.set_grad_enabled(False)
torch.manual_seed(0)
size, tokens = 64, 6
k = 100 * torch.nn.functional.normalize(torch.randn(1, tokens, size), dim=-1)
q = torch.stack([k, -k], 1)
values = torch.eye(tokens, size)[None]
weights = {}
for kind, scale in ("not normalized", None), ("normalized", 0.01), ("normalized", 8), ("normalized", 1000):
    attention = Attention(size) if scale is None else Attention(size, qk_rmsnorm=True, qk_rmsnorm_scale=scale)
    weights[scale] = attention(q, k, values)[0, :, :, :tokens]
    own, opposite = (each.diagonal() for each in weights[scale])
    print(f"queries and keys {kind}, scale {scale}: weight of its own direction {float(own.mean()):.3f}, of the "
          f"opposite one {float(opposite.mean()):.3f}, of {tokens} keys")
unit = torch.nn.functional.normalize(k, dim=-1)
want = (8 * unit @ unit.mT).softmax(-1)[0].diagonal().mean()
print(f"with a scale of 8 it would be {float(want):.3f}")
ratio = float((weights[8].amax(-1) / weights[8].amin(-1)).max())
print(f"largest weight by smallest: {ratio:.3f}, at most e^(2 / 8) = {math.exp(2 / 8):.3f}")

model = BlockRecurrentTransformer(num_tokens=8, dim=16, depth=2, max_seq_len=16, block_width=8)
layers = [module.qk_rmsnorm for module in model.modules() if isinstance(module, Attention)]
print("attentions of a model with its defaults that are normalized:", sum(layers), "of", len(layers))
print("block-recurrent-transformer-pytorch", importlib.metadata.version("block-recurrent-transformer-pytorch"))
same = torch.equal(weights[8], weights[0.01]) and torch.equal(weights[8], weights[1000])
flat = float(weights[8][0].diagonal().max()) < 0.25 < 0.9 < min(float(want), float(weights[None][0].diagonal().min()))
sys.exit(not (same and ratio <= math.exp(2 / 8) + 1e-3 and flat and 0 < sum(layers) < len(layers)))
PYTHON
