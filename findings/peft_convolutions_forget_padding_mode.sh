#!/bin/sh
# peft 0.21.2, torch 2.13.0 (CPU): LoRA, DoRA, LoHa and LoKr on Conv1d and Conv2d with padding_mode="circular" or
# "reflect", and with dilation and padding="same". Expected: the change of the layer's own weights, convolved as the
# layer convolves, and one model before and after merge_and_unload(). Seen, without an error: the adapter's convolution
# has zeros beside the picture, and that of LoRA and DoRA no dilation, so that the merged model is another than the one
# that was trained, at every edge, or everywhere. With zeros beside the picture and no dilation all agree to rounding.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.23.0 accelerate==1.15.0 peft==0.21.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import peft
import torch

makers = {
    "LoRA": lambda: peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False),
    "DoRA": lambda: peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False, use_dora=True),
    "LoHa": lambda: peft.LoHaConfig(r=4, target_modules=["0"], init_weights=False),
    "LoKr": lambda: peft.LoKrConfig(r=4, target_modules=["0"], init_weights=False),
}
layers = {
    "plain": {"padding": 1},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "dilated": {"padding": "same", "dilation": 2},
}
found = {}
for method, make in makers.items():
    for name, options in layers.items():
        for kind, shape in (("Conv1d", (2, 8, 16)), ("Conv2d", (2, 8, 16, 16))):
            torch.manual_seed(0)
            x = torch.randn(shape, dtype=torch.float64)
            base = torch.nn.Sequential(getattr(torch.nn, kind)(8, 8, 3, **options)).double().eval()
            with torch.no_grad():
                model = peft.get_peft_model(base, make()).double().eval()
                trained = model(x)
                merged = model.merge_and_unload()(x)
            apart = (trained - merged).abs().flatten(2).amax((0, 1)).view(shape[2:])
            inner = apart[(slice(4, -4),) * apart.ndim]
            found[method, name, kind] = [round(float(a.max() / merged.abs().max()), 6) for a in (apart, inner)]
print("peft", peft.__version__, "relative difference by merging, at all, away from edges:")
for name, numbers in found.items():
    print(*name, numbers)
wrong = []
for (method, name, _), (edge, inner) in found.items():
    anywhere = name == "dilated" and method in ("LoRA", "DoRA")
    wrong.append((edge > 1e-3) == (anywhere or name in ("circular", "reflect")) and (inner > 1e-3) == anywhere)
sys.exit(not all(wrong))
PYTHON
