#!/bin/sh
# torch 2.13.0 (CPU): TransformerEncoderLayer(activation=torch.nn.GELU(approximate="tanh")), the activation of GPT-2,
# ViT of JAX and others. Expected: this activation in training and in evaluation. Seen: with gradients recorded that; in
# eval mode without gradients the exact GELU, as the fast path only knows that it is a GELU. In float64, where all else
# agrees to 1e-14, outputs are 1e-4 to 1e-3 apart for each layer, and grow apart over twelve. A function, lambda x:
# gelu(x, approximate="tanh"), is evaluated as given. No error, no warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import math
import sys

import torch
from torch.nn.functional import gelu


class Formula(torch.nn.Module):
    def __init__(self, formula):
        super().__init__()
        self.formula = formula

    def forward(self, x):
        return self.formula(x)


x = torch.randn(4, 16, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
formulas = {
    "tanh": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "exact": lambda x: x / 2 * (1 + torch.erf(x / math.sqrt(2))),
}
activations = {
    "GELU(tanh)": torch.nn.GELU("tanh"),
    "GELU()": torch.nn.GELU(),
    "lambda": lambda x: gelu(x, approximate="tanh"),
}
found = {}
for name, activation in activations.items():
    for layers in (1, 12):
        torch.manual_seed(0)
        options = {"batch_first": True, "norm_first": True, "dtype": torch.float64}
        layer = torch.nn.TransformerEncoderLayer(64, 4, 256, 0.0, activation, **options)
        encoder = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
        with torch.no_grad():
            for parameter in encoder.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, parameter.shape[1] ** -0.5)
        recorded = encoder(x).detach()
        with torch.no_grad():
            evaluated = encoder(x)
            wanted = {}
            for kind, formula in formulas.items():
                for part in encoder.layers:
                    part.activation, part.activation_relu_or_gelu = Formula(formula), 0
                wanted[kind] = encoder(x)
        pairs = [(recorded, "tanh"), (recorded, "exact"), (evaluated, "tanh"), (evaluated, "exact")]
        found[name, layers] = [float(f"{(y - wanted[kind]).abs().max() / y.std():.1e}") for y, kind in pairs]
print("torch", torch.__version__, "apart from tanh's, the exact with gradients recorded, and both without:")
for name, numbers in found.items():
    print(*name, numbers)
small = {name: [n < 1e-11 for n in numbers] for name, numbers in found.items()}
far = all(n < 1e-11 or n > 1e-5 for numbers in found.values() for n in numbers)
want = {
    "GELU(tanh)": [True, False, False, True],
    "GELU()": [False, True, False, True],
    "lambda": [True, False, True, False],
}
sys.exit(not (far and all(small[name, layers] == want[name] for name, layers in small)))
PYTHON
