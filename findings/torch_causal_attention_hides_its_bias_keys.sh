#!/bin/sh
# torch 2.13.0 (CPU): MultiheadAttention(add_bias_kv=True), which adds a learned key and value to those of the text, or
# add_zero_attn=True, called with a causal mask. Expected: every token sees the added key, however the call is made, as
# with the mask alone. Seen: with attn_mask=mask, is_causal=True and need_weights=False, as a decoder calls it for
# speed, no token sees it: the mask is given up for a causal one by places, the added key stands behind all tokens, and
# the output is that of a layer without the option; bias_k and bias_v get gradients of 0 and are never trained. With
# need_weights=True, with a padding mask of no padding, or without the hint, it is seen: the hint, which is to change
# nothing where the mask is causal, changes the model. No warning.
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
x = torch.randn(2, 6, 16)
mask = torch.nn.Transformer.generate_square_subsequent_mask(6)
calls = {
    "mask": {"need_weights": False},
    "mask, hint": {"need_weights": False, "is_causal": True},
    "mask, hint, weights": {"need_weights": True, "is_causal": True},
    "mask, hint, no padding": {"need_weights": False, "is_causal": True, "key_padding_mask": torch.zeros(2, 6)},
}
found = {}
for option in ("add_bias_kv", "add_zero_attn", None):
    torch.manual_seed(0)
    options = {option: True} if option else {}
    layer = torch.nn.MultiheadAttention(16, 2, batch_first=True, **options)
    plain = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    plain.load_state_dict({name: w for name, w in layer.state_dict().items() if not name.startswith("bias_")})
    without = plain(x, x, x, attn_mask=mask, need_weights=False)[0]
    whole = layer(x, x, x, attn_mask=mask, need_weights=False)[0].detach()
    for name, given in calls.items():
        layer.zero_grad()
        y = layer(x, x, x, attn_mask=mask, **given)[0]
        y.square().sum().backward()
        slope = float(layer.bias_v.grad.abs().max()) if option == "add_bias_kv" else None
        apart = [round(float((y - other).abs().max()), 6) for other in (whole, without)]
        found[option, name] = *apart, slope if slope is None else round(slope, 6)
print(
    "torch", torch.__version__, "from the call with the mask alone, from a layer without the option, slope of bias_v:"
)
for key, values in found.items():
    print(*key, values)
right = all(
    found[option, name][0] < 1e-5 and found[option, name][1] > 0.01 and found[option, name][2] != 0
    for option in ("add_bias_kv", "add_zero_attn")
    for name in calls
    if name != "mask, hint"
)
wrong = all(
    found[o, "mask, hint"][0] > 0.01 and found[o, "mask, hint"][1] < 1e-5 for o in ("add_bias_kv", "add_zero_attn")
)
same = all(max(found[None, name][:2]) < 1e-5 for name in calls)
sys.exit(not (right and wrong and same and found["add_bias_kv", "mask, hint"][2] == 0))
PYTHON
