#!/bin/sh
# performer-pytorch 1.1.4, torch 2.13.0 (CPU): PerformerLM. Expected: with mask= False for the tokens behind a text its logits are those of the text alone;
# with causal=True a token does not change the logits before it. Seen: neither. The mask sets values to 0 and leaves the keys, which go on counting in the
# denominator, so that logits are 7 % of the largest apart with as much padding as half the text. With causal=True features of keys are divided by the
# exponential of the largest of the whole text before a constant is added, so that a last token with a large key turns the weights of those before it towards
# equal ones: in FastAttention outputs change by three quarters of the largest. generalized_attention=True, with no exponential, is causal.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy performer-pytorch==1.1.4 local-attention==1.11.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from performer_pytorch import PerformerLM
from performer_pytorch.performer_pytorch import FastAttention

torch.manual_seed(0)
sizes = {"num_tokens": 50, "max_seq_len": 64, "dim": 32, "depth": 2, "heads": 2, "dim_head": 16}
tokens, found = torch.randint(1, 50, (1, 40)), {}
padded = torch.nn.functional.pad(tokens, (0, 24))
mask = torch.arange(64)[None] < 40
q, k, v = torch.randn(3, 1, 1, 32, 16)
larger = k.clone()
larger[:, :, -1] *= 3
with torch.no_grad():
    model = PerformerLM(**sizes).eval()
    y = model(tokens)
    found["padding"] = float((model(padded, mask=mask)[:, :40] - y).abs().max() / y.abs().max())
    for name, options in (("last token", {}), ("last token, generalized", {"generalized_attention": True})):
        model = PerformerLM(**sizes, causal=True, **options).eval()
        y, changed = model(tokens), 0.0
        for token in range(0, 50, 5):
            other = torch.cat([tokens[:, :-1], torch.full((1, 1), token)], 1)
            changed = max(changed, float((model(other) - y)[:, :-1].abs().max() / y.abs().max()))
        attention = FastAttention(16, 64, causal=True, **options)
        y = attention(q, k, v)
        found[name] = changed, float((attention(q, larger, v) - y)[:, :, :-1].abs().max() / y.abs().max())
print("performer-pytorch", importlib.metadata.version("performer-pytorch"), "relative changes of logits; of attention alone:", found)
sys.exit(not (found["padding"] > 0.01 and found["last token"][1] > 0.1 and max(found["last token, generalized"]) < 1e-5))
PYTHON
