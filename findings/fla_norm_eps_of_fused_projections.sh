#!/bin/sh
# flash-linear-attention 0.6.0 (fla-core 0.6.0), torch 2.13.0: HGRN2Attention and GatedSlotAttention take norm_eps and give it to their norm.
# Expected: the output is normalized with it, as GatedLinearAttention's is. Seen: no effect. The fused norm and projection are called
# with the norm's weights alone and use 1e-5, whatever the layer and the model's configuration (1e-6 by default) say. With norm_eps=1.0
# in place of 1e-5 the outputs of the two are bit-identical, those of gated linear attention are 62 % apart. Who ports weights needs 1e-5.
# The kernels run in Triton's interpreter, without a GPU. Ends with 0 as long as this is so, with 1 once it changes.
# Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 triton==3.7.1 numpy einops==0.8.2 transformers==5.23.0
"$folder/venv/bin/pip" install --quiet --no-deps fla-core==0.6.0 flash-linear-attention==0.6.0
cd "$folder"
TRITON_INTERPRET=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import triton
from triton.runtime.autotuner import Autotuner

# Nothing is tuned in the interpreter: the first configuration of each kernel serves.
Autotuner.run = lambda self, *args, **options: self.fn.run(*args, **options, **self.configs[0].all_kwargs())

from fla.layers import GatedLinearAttention, GatedSlotAttention, HGRN2Attention

torch.manual_seed(0)
x = torch.randn(1, 20, 32)
apart = {}
for kind, options in (
    (HGRN2Attention, {"expand_ratio": 16}),
    (GatedSlotAttention, {"num_heads": 2, "num_slots": 8, "layer_idx": 0}),
    (GatedLinearAttention, {"num_heads": 2}),
):
    found = []
    for eps in (1e-5, 1.0):
        torch.manual_seed(1)
        layer = kind(hidden_size=32, norm_eps=eps, **options).eval()
        with torch.no_grad():
            found.append(layer(x)[0])
    apart[kind.__name__] = float((found[0] - found[1]).abs().max() / found[0].abs().max())
print("torch", torch.__version__, "triton", triton.__version__, apart)
ignored = apart["HGRN2Attention"] == 0 and apart["GatedSlotAttention"] == 0
sys.exit(not (ignored and apart["GatedLinearAttention"] > 0.1))
PYTHON
