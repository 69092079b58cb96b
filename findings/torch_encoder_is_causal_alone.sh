#!/bin/sh
# torch 2.13.0: TransformerEncoder(x, is_causal=True). Its documentation says: "If specified, applies a causal mask as mask".
# Expected: causal attention, as scaled_dot_product_attention(is_causal=True) has, or the error of MultiheadAttention(is_causal=True), which
# asks for the mask. Seen, in eval mode without gradients: no error and no mask; the first token sees all others. With gradients
# the same call raises that error. With mask= given as well the attention is causal.
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
layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
encoder = torch.nn.TransformerEncoder(layer, 2).eval()
x = torch.randn(2, 5, 8)
mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
with torch.no_grad():
    alone, both, neither = encoder(x, is_causal=True), encoder(x, mask=mask, is_causal=True), encoder(x)
try:
    encoder(x, is_causal=True)
    recorded = "computed"
except RuntimeError as error:
    recorded = str(error)
as_unmasked, as_causal = (float((alone - other).abs().max()) for other in (neither, both))
print("torch", torch.__version__, {"from no mask": as_unmasked, "from a causal mask": as_causal, "with gradients": recorded})
says = "applies a causal mask" in torch.nn.TransformerEncoder.forward.__doc__
sys.exit(not (says and as_unmasked < 1e-5 and as_causal > 0.1 and "Need attn_mask" in recorded))
PYTHON
