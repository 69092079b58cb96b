#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): input_jitter_noise of PhiMoE in training. Expected: a block multiplies its
# tokens once by numbers between 1 - noise and 1 + noise, and router and experts read these. Seen: the block does it and
# its router does it again, with other numbers, in place, so that the experts read twice multiplied tokens too: with 0.1
# from 0.81 to 1.21 of what came in, and not evenly spread, with twice the variance. In evaluation there is no noise.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import transformers as t

t.logging.set_verbosity_error()
sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
sizes |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_local_experts": 4}
texts = torch.randint(3, 40, (16, 64), generator=torch.Generator().manual_seed(0))
noise = 0.1
found = {}
for training in (True, False):
    torch.manual_seed(0)
    model = t.PhimoeModel(t.PhimoeConfig(**sizes, input_jitter_noise=noise, router_jitter_noise=noise)).train(training)
    before, after = [], []
    for layer in model.layers:
        norm = layer.post_attention_layernorm
        norm.register_forward_hook(lambda m, given, output: before.append(output.detach().clone()))
        layer.mlp.experts.register_forward_pre_hook(lambda m, given: after.append(given[0].detach().clone()))
    with torch.no_grad():
        model(texts, use_cache=False)
    a, b = (torch.cat([x.flatten() for x in side]).double() for side in (before, after))
    factors = (b / a)[a.abs() > 1e-2]
    found[training] = [round(float(x), 4) for x in (factors.min(), factors.max(), factors.var() / (noise**2 / 3))]
print("transformers", t.__version__, "what experts read, as a factor: least, largest, variance against one noise's:")
print("training:", found[True], "evaluation:", found[False])
low, high, variance = found[True]
sys.exit(not (0.8 < low < 0.83 and 1.18 < high < 1.22 and 1.8 < variance < 2.2 and found[False] == [1, 1, 0]))
PYTHON
