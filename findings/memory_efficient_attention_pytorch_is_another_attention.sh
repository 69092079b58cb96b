#!/bin/sh
# memory-efficient-attention-pytorch 0.1.6, torch 2.13.0 (CPU): Attention with memory_efficient=True and False, the same weights. Expected: the same outputs,
# as chunks change memory alone. Seen: with causal=True and a context longer than the text, the one aligns the triangle at the end and the other at the start:
# the first token sees 5 keys or 1. dropout=0.5 in training drops nothing without memory_efficient, and with it the sum of the weights is of those that were
# kept, so that a row of values of 1 stays 1, which dropout of attention changes, in PyTorch by up to 0.23. CosineSimAttention starts with a scale of 1 /
# log2(L^2 - L), 1/20 for 1024 tokens, where query-key normalization (arXiv:2010.04245) has log2(L^2 - L), 20: its weights are equal to 10 % at the start.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy memory-efficient-attention-pytorch==0.1.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import math
import sys

import torch
from memory_efficient_attention_pytorch import Attention, CosineSimAttention

torch.manual_seed(0)
sizes = {"dim": 16, "heads": 2, "dim_head": 8}
x, context, found = torch.randn(1, 6, 16), torch.randn(1, 10, 16), {}
with torch.no_grad():
    cases = ("causal", {"causal": True}, {}), ("causal, context", {"causal": True}, {"context": context}), ("context", {}, {"context": context})
    for name, options, inputs in cases:
        layer = Attention(**sizes, **options).eval()
        y = layer(x, **inputs)
        found[name] = float((layer(x, **inputs, memory_efficient=True) - y).abs().max() / y.abs().max())
    layer = Attention(**sizes, dropout=0.5).train()
    layer.to_kv.weight.zero_()  # keys are 0; values become the inputs, which are 1 below
    layer.to_kv.weight[16:].copy_(torch.eye(16))
    layer.to_out.weight.copy_(torch.eye(16))
    ones = torch.ones(1, 200, 16)
    found["dropout"] = {name: float((layer(ones, memory_efficient=name) - 1).abs().max()) for name in (False, True)}
    torch_layer = torch.nn.functional.scaled_dot_product_attention(ones[None], 0 * ones[None], ones[None], dropout_p=0.5)
    found["dropout"]["torch"] = float((torch_layer - 1).abs().max())
    changes = [(layer(x, memory_efficient=name) - layer(x, memory_efficient=name)).abs().max() for name in (False, True)]
    found["two calls"] = [float(change) for change in changes]
    found["scale times log2(L^2 - L)"] = float(CosineSimAttention(**sizes, seq_len=1024).scale.exp().mean() * math.log2(1024**2 - 1024))
print("memory-efficient-attention-pytorch", importlib.metadata.version("memory-efficient-attention-pytorch"), found)
aligned = found["causal"] < 1e-4 and found["context"] < 1e-4 and found["causal, context"] > 0.1
dropped = found["two calls"][0] == 0 and found["two calls"][1] > 0.01 and found["dropout"][True] < 1e-4 and found["dropout"]["torch"] > 0.05
sys.exit(not (aligned and dropped and abs(found["scale times log2(L^2 - L)"] - 1) < 1e-3))
PYTHON
