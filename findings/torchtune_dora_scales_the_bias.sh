#!/bin/sh
# torchtune 0.6.1, torchao 0.16.0, torch 2.13.0 (CPU): DoRALinear(use_bias=True), as queries, keys and values of Qwen 2
# have with use_dora=True. Expected: DoRA (arXiv:2402.09353) changes the weights alone, m (W + B A) / |W + B A|, and the
# bias is added, as peft does it and as get_merged_lora_ckpt, which saves the model, merges it. Seen: the bias is scaled
# by m / |W + B A| of its row too. At the start this is 1; once trained, the merged model is another one than was
# trained and evaluated, by the bias times the change of scale. Without a bias the two agree. No error, no warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchtune==0.6.1 torchao==0.16.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from torch.nn.functional import linear
from torchtune.models.qwen2 import lora_qwen2
from torchtune.modules.peft import DoRALinear, get_merged_lora_ckpt

rank, alpha = 2, 4
found = {}
for bias in False, True:
    torch.manual_seed(0)
    layer = DoRALinear(8, 6, rank=rank, alpha=alpha, use_bias=bias)
    layer.initialize_dora_magnitude()
    x, target = torch.randn(64, 8), torch.randn(64, 6)
    with torch.no_grad():
        if bias:
            layer.bias.copy_(torch.arange(1.0, 7.0))
        start = float((layer(x) - linear(x, layer.weight, layer.bias)).abs().max())
    trained = [parameter for name, parameter in layer.named_parameters() if name not in ("weight", "bias")]
    optimizer = torch.optim.Adam(trained, lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        state = {f"it.{name}": value.clone() for name, value in layer.state_dict().items()}
        state = get_merged_lora_ckpt(state, rank, alpha)
        merged = linear(x, state["it.weight"], state.get("it.bias"))
        gap = layer(x) - merged
        update = layer.weight + alpha / rank * layer.lora_b.weight @ layer.lora_a.weight
        scale = layer.magnitude / update.norm(dim=1)
        by_bias = (scale - 1) * layer.bias if bias else torch.zeros(6)
        found[bias] = start, float(gap.abs().max()), float((gap - by_bias).abs().max())
    print(f"bias {bias}: apart from the base at the start {start:.1e}; trained, apart from the merged layer "
          f"{found[bias][1]:.2g}; without the bias times the change of scale {found[bias][2]:.1e}")
model = lora_qwen2(
    ["q_proj", "k_proj", "v_proj"], vocab_size=8, num_layers=1, num_heads=1, num_kv_heads=1, embed_dim=8,
    intermediate_dim=8, max_seq_len=8, lora_rank=rank, lora_alpha=alpha, use_dora=True,
)
of_qwen = [name for name, module in model.named_modules() if isinstance(module, DoRALinear) and module.bias is not None]
print("such layers of lora_qwen2(use_dora=True):", of_qwen)
print("torchtune", importlib.metadata.version("torchtune"))
sys.exit(not (len(of_qwen) == 3 and found[False][1] < 1e-4 and found[True][0] < 1e-5 and found[True][1] > 0.1
              and found[True][2] < 1e-4))
PYTHON
