#!/bin/sh
# gateloop-transformer 0.2.5, torch 2.13.0 (CPU). Expected of GateLoopedAttention, as in the paper (arXiv:2311.01927): a state transition of magnitude between
# 0 and 1 that its input sets, so that a token can clear the state; and of CausalFullAttention(data_dependent_rel_pos=True, softmax_normalize=False) the same
# sums written as attention. Seen: the magnitude is the sigmoid of an absolute value, 0.5 at least: with any projection half of the state is kept at each
# step, and a gate of -50 keeps all of it as one of 50 does. The attention form keeps the real part of the products of transitions alone, clips it at 1e-10
# from below and divides by it: outputs are of order 1e8 where the sums are of order 1, as soon as a transition has a negative real part.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy gateloop-transformer==0.2.5
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from gateloop_transformer import GateLoopedAttention
from gateloop_transformer.gateloop_transformer import CausalFullAttention

torch.manual_seed(0)
found = {}
with torch.no_grad():
    layer = GateLoopedAttention(dim=4, heads=4, add_swish_gating=False)
    layer.to_qkv.weight.copy_(torch.eye(4).repeat(3, 1))
    x = torch.ones(1, 3, 4)
    for scale in (-50, -1, 0, 1):
        layer.to_a[0].weight.zero_()
        layer.to_a[0].bias.copy_(torch.tensor([float(scale), 0.0]).repeat(4))  # the complex number scale + 0i for each head
        change = (layer(x * torch.tensor([2.0, 1, 1]).view(1, 3, 1)) - layer(x))[0, :, 0]  # of q k v: 8 - 1 in the first place, 4 - 1 in the state
        found["state kept", scale] = [round(abs(float(change[t])) / 3, 4) for t in (1, 2)]
    attention = CausalFullAttention(dim=16, dim_head=8, heads=2, data_dependent_rel_pos=True, softmax_normalize=False)
    x = torch.randn(1, 12, 16)
    q, k, v = attention.to_qkv(x)
    a = torch.view_as_complex(attention.to_a(x))
    a = torch.polar(a.abs().sigmoid(), a.angle())
    q, k = (t.unflatten(-1, (-1, 2)).to(a.dtype) for t in (q * attention.scale, k))
    state, rows = torch.zeros(1, 2, 4, 2, 8, dtype=a.dtype), []
    for t in range(12):
        state = state * a[:, :, t, :, None, None] + k[:, :, t, ..., None] * v[:, :, t, None, None]
        rows.append(torch.einsum("bhdc,bhdce->bhe", q[:, :, t], state).real)
    exact, y = attention.to_out(torch.stack(rows, 2)), attention(x)
    found["largest"] = [float(f"{float(t.abs().max()):.2g}") for t in (exact, y)]
print("gateloop-transformer", importlib.metadata.version("gateloop-transformer"), "first token's share of the state after 1 and 2 steps, by its gate;",
      "largest of the sums and of the attention form:", found)
kept = min(share for key, (share, _) in found.items() if key != "largest")
sys.exit(not (kept >= 0.5 and found["state kept", -50] == [1, 1] and found["largest"][0] < 10 and found["largest"][1] > 1e6))
PYTHON
