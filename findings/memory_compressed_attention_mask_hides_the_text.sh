#!/bin/sh
# memory-compressed-attention 0.0.7, torch 2.13.0 (CPU): MemoryCompressedAttention (arXiv:1801.10198) with input_mask. Expected: padding is hidden, and a mask
# that is True throughout changes nothing. Seen: query and key are compared by <, so that a token of the text sees no token but the null key, whose value is 0
# at the start, and padding sees the text: with any mask the outputs of the text are all the same, whatever the text is. Without a mask the products are
# divided by the root of the whole width, not of a head's: with 8 heads the scores are 2.8 times smaller than those of the paper. No error or warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy memory-compressed-attention==0.0.7
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from memory_compressed_attention import MemoryCompressedAttention

torch.manual_seed(0)
found = {}
with torch.no_grad():
    for causal in (False, True):
        layer = MemoryCompressedAttention(dim=64, heads=8, causal=causal, compression_factor=3).eval()
        x, other = torch.randn(2, 2, 24, 64).unbind(0)
        mask = torch.ones(2, 24, dtype=torch.bool)
        y, masked = layer(x), layer(x, input_mask=mask)
        mask[:, 18:] = False
        found[causal] = {
            "change by a mask of True": round(float((masked - y).abs().max() / y.abs().max()), 2),
            "spread of the outputs, with and without": [round(float(t[:, :18].std((0, 1)).mean()), 4) for t in (layer(x, input_mask=mask), y)],
            "change by another text": round(float((layer(other, input_mask=mask) - layer(x, input_mask=mask))[:, :18].abs().max()), 4),
        }
print("memory-compressed-attention", importlib.metadata.version("memory-compressed-attention"), "by causal:", found)
sys.exit(not all(
    f["change by a mask of True"] > 0.1 and f["spread of the outputs, with and without"][0] < 1e-6 < 0.01 < f["spread of the outputs, with and without"][1]
    and f["change by another text"] < 1e-6 for f in found.values()
))
PYTHON
