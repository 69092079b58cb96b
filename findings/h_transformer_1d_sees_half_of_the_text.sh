#!/bin/sh
# h-transformer-1d 0.1.9, torch 2.13.0 (CPU): HAttention1D and CausalHAttention1D, hierarchical attention (arXiv:2107.11906), in which all pairs of tokens are
# connected, near ones by themselves and far ones by means, and the weights of all levels are one softmax. Expected: an output depends on all tokens, or on
# all before it. Seen: the coarsest level is left out, and a token's output depends on its own half of the text alone; with causal attention the block before
# the own is left out at the finest level, and of 256 tokens 16 % of the pairs are connected: token 129 sees 128 and itself, token 20 sees 16 to 20. The
# largest score is subtracted at each level for itself, so that weights of two levels don't compare: a token that matches its neighbor with a score of 100
# gives it the same weight as the mean of far tokens with a score of 0, 0.08 in place of 1.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy h-transformer-1d==0.1.9 rotary-embedding-torch==0.9.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from h_transformer_1d.h_transformer_1d import CausalHAttention1D, HAttention1D

torch.set_num_threads(1)
torch.manual_seed(0)
length = 256


def connected(layer):
    """Whether token i's output depends on token j, by gradients."""
    x = torch.randn(1, length, 16)
    slopes = torch.autograd.functional.jacobian(lambda x: layer(x)[0].sum(-1), x)
    return slopes[:, 0].abs().sum(-1) > 0


full, causal = (connected(kind(16, heads=1, dim_head=16, block_size=8, **options)) for kind, options in (
    (HAttention1D, {}), (CausalHAttention1D, {"max_seq_len": length}),
))
pairs = float(full.float().mean()), float(causal.sum() / (length * (length + 1) / 2))
seen = {i: causal[i].nonzero().flatten().tolist() for i in (20, 129)}

# Queries, keys and values are the inputs. Token 0's score with itself and with token 1 is 100, with the others 0.
layer = HAttention1D(16, heads=1, dim_head=16, block_size=8)
x = torch.zeros(1, 128, 16)
x[0, :2, 0] = 20
x[0, 2:, 1] = 1
with torch.no_grad():
    layer.to_qkv.weight.copy_(torch.eye(16).repeat(3, 1))
    layer.to_out.weight.copy_(torch.eye(16))
    layer.to_out.bias.zero_()
    share = float(layer(x)[0, 0, 0] / 20)
print("h-transformer-1d", importlib.metadata.version("h-transformer-1d"), "connected pairs, full and causal:", pairs)
print("seen by tokens of 256, causal:", seen, "weight of two tokens whose scores are 100 above all others':", share)
sys.exit(not (pairs[0] == 0.5 and pairs[1] < 0.2 and seen == {20: [16, 17, 18, 19, 20], 129: [128, 129]} and share < 0.2))
PYTHON
