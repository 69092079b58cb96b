#!/bin/sh
# torch 2.13.0 (CPU): TransformerEncoderLayer and TransformerEncoder with a float mask of finite numbers, such as the biases by
# distance of ALiBi or of relative positions. Expected: they are added to the logits of the attention, in training and
# in evaluation, as MultiheadAttention and scaled_dot_product_attention do. Seen: so with gradients recorded; in eval mode
# without gradients every number that is not 0 hides its key, and with biases by distance a token sees itself alone. Masks of 0
# and -inf are the same in both. No error, no warning. A model is trained with its biases and evaluated without them;
# torch.backends.mha.set_fastpath_enabled(False) serves.
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

torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).double().eval()
attention = torch.nn.MultiheadAttention(32, 4, batch_first=True).double().eval()
x = torch.randn(2, 10, 32, dtype=torch.float64)
distance = (torch.arange(10)[:, None] - torch.arange(10)).abs().double()
masks = {
    "biases": -0.5 * distance,
    "biases by head": -0.5 * distance * torch.tensor([1.0, 0.5, 0.25, 0.125]).repeat(2).double()[:, None, None],
    "causal": torch.nn.Transformer.generate_square_subsequent_mask(10, dtype=torch.float64),
}


def by_hand(mask):  # the layer in plain products
    a = layer.self_attn
    q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in (x @ a.in_proj_weight.T + a.in_proj_bias).chunk(3, -1))
    scores = q @ k.transpose(-1, -2) / 8**0.5 + (mask.view(2, 4, 10, 10) if mask.ndim == 3 else mask)
    y = layer.norm1(x + a.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
    return layer.norm2(y + layer.linear2(layer.linear1(y).relu()))


found = {}
with torch.no_grad():
    for name, mask in masks.items():
        want, fast = by_hand(mask), layer(x, src_mask=mask)
        with torch.enable_grad():
            recorded = layer(x, src_mask=mask).detach()
        found[name] = [float((y - want).abs().max()) for y in (recorded, fast)]
    alone = layer(x, src_mask=torch.where(torch.eye(10, dtype=torch.bool), 0.0, -torch.inf).double())
    found["itself alone"] = float((layer(x, src_mask=masks["biases"]) - alone).abs().max())
    ways = [attention(x, x, x, attn_mask=masks["biases"], need_weights=False)[0]]
    with torch.enable_grad():
        ways.append(attention(x, x, x, attn_mask=masks["biases"], need_weights=False)[0].detach())
    found["MultiheadAttention"] = float((ways[0] - ways[1]).abs().max())
print("torch", torch.__version__, "largest difference from the formula, with gradients and without, and others:", found)
right = max(*found["causal"], found["biases"][0], found["biases by head"][0], found["itself alone"], found["MultiheadAttention"])
sys.exit(not (right < 1e-9 and min(found["biases"][1], found["biases by head"][1]) > 0.1))
PYTHON
