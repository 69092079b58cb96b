#!/bin/sh
# ring-attention-pytorch 0.5.20, torch 2.13.0 (CPU): RingAttention(causal=True, ring_attn=True, striped_ring_attn=True) in one process, as a model trained
# over several devices is evaluated. Expected: causal attention, as with striped_ring_attn=False; both are the same function of a text. Seen: in one process
# the text is not rearranged into stripes, but the masks are those of stripes: a token sees later ones, and not all of those before it; a change of token 9 of
# 24 changes outputs from token 2 on. rotary_embed=True adds the positions of stripes. No error or warning. force_regular_attn=True is causal and ignores
# max_lookback_seq_len.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy ring-attention-pytorch==0.5.20
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from ring_attention_pytorch import RingAttention

sizes = {"dim": 32, "dim_head": 8, "heads": 4, "bucket_size": 4, "ring_seq_size": 8, "causal": True}
x = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(0))
other = x.clone()
other[:, 9] += 1
found = {}
with torch.no_grad():
    for name, options in {
        "plain": {}, "ring": {"ring_attn": True}, "striped": {"ring_attn": True, "striped_ring_attn": True}, "window": {"max_lookback_seq_len": 8},
        "striped, regular": {"ring_attn": True, "striped_ring_attn": True, "force_regular_attn": True},
        "window, regular": {"max_lookback_seq_len": 8, "force_regular_attn": True},
    }.items():
        torch.manual_seed(0)
        layer = RingAttention(**sizes, **options)
        found[name] = ((layer(other) - layer(x)).abs().amax((0, 2)) > 1e-6).nonzero().flatten().tolist()
print("ring-attention-pytorch", importlib.metadata.version("ring-attention-pytorch"), "outputs that depend on token 9:", found)
after = list(range(9, 24))
right = all(found[name] == after for name in ("plain", "ring", "striped, regular", "window, regular")) and found["window"] == list(range(9, 20))
sys.exit(not (right and found["striped"][0] < 9 and set(after) - set(found["striped"])))
PYTHON
