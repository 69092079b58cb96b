#!/bin/sh
# transformers 5.23.0, torch 2.13.0 for CPUs, beside fla-core 0.6.0 and triton 3.7.1: a forward pass of Qwen3-Next's gated delta net on a CPU.
# Expected: the PyTorch code that it runs without fla-core, which transformers itself has. Seen: it takes the Triton kernels of fla-core
# because they can be imported, and raises RuntimeError: 0 active drivers ([]). There should only be one.
# Installing a package breaks a model that ran. Ends with 0 as long as this is so, with 1 once it changes.
# Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 triton==3.7.1 numpy einops==0.8.2 transformers==5.23.0
cat > "$folder/run.py" <<'PYTHON'
import sys

import torch
import transformers

size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 16, "num_attention_heads": 2}
heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
config = transformers.Qwen3NextConfig(
    **size, **heads, num_key_value_heads=2, head_dim=8, layer_types=["linear_attention"], num_experts=0, mlp_only_layers=[0]
)
model = transformers.Qwen3NextForCausalLM(config).eval()
try:
    with torch.no_grad():
        found = str(tuple(model(torch.arange(12)[None], use_cache=False).logits.shape))
except RuntimeError as error:
    found = f"RuntimeError: {error}"
print("transformers", transformers.__version__, sys.argv[1], found)
sys.exit(not found.startswith(sys.argv[2]))
PYTHON
cd "$folder"
"$folder/venv/bin/python" -W ignore run.py "without fla-core:" "(1, 12, 16)"
"$folder/venv/bin/pip" install --quiet --no-deps fla-core==0.6.0
"$folder/venv/bin/python" -W ignore run.py "with fla-core:" "RuntimeError: 0 active drivers"
