#!/bin/sh
# feedback-transformer-pytorch 0.0.11, torch 2.13.0 (CPU): FeedbackTransformer's relative position bias. Expected: the bias of a pair of tokens depends on
# their distance, so that each of the tokens read so far gets the bucket of how far back it is. Seen: a step of seq_len tokens is compared with its memory as
# if it stood at the memory's start: of 2 tokens after 30 of memory the first has distance 0 to all of them, itself included, and the second distance 1 to the
# oldest and 0 to the rest. 2 of the 32 buckets are ever used, and a model knows nothing of the order of its memory but what the tokens tell.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy feedback-transformer-pytorch==0.0.11
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from feedback_transformer_pytorch import FeedbackTransformer

torch.manual_seed(0)
model = FeedbackTransformer(num_tokens=20, dim=32, depth=2, mem_len=64, seq_len=2, heads=2, dim_head=8)
with torch.no_grad():
    model.pos_emb.relative_attention_bias.weight.copy_(torch.arange(32.0)[:, None].expand(32, 2))  # the bias of a bucket is its number
    seen = []
    model.pos_emb.register_forward_hook(lambda _, inputs, output: seen.append(output[0, 0].int().tolist()))
    model(torch.randint(0, 20, (1, 32)))
    model.pos_emb.relative_attention_bias.weight.normal_()
last = seen[-1]
model(torch.randint(0, 20, (1, 32))).square().mean().backward()
used = (model.pos_emb.relative_attention_bias.weight.grad.abs().amax(1) > 0).nonzero().flatten().tolist()
print("feedback-transformer-pytorch", importlib.metadata.version("feedback-transformer-pytorch"),
      "buckets of the last 2 of 32 tokens to all:", last, "ever used:", used)
sys.exit(not (last == [[0] * 32, [1] + [0] * 31] and used == [0, 1]))
PYTHON
