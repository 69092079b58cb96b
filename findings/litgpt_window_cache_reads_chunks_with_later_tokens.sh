#!/bin/sh
# litgpt 0.5.13, torch 2.13.0 (CPU): a model with a sliding window (sliding_window_size=4 in its first layer, as Gemma
# 2, Gemma 3 and others have larger ones) reading a prompt with its cache. Given a prompt longer than the window at
# once, it raises an error that says that this would break causality and asks for chunks no longer than the window.
# Expected: in such chunks, the logits of the model without a cache. Seen: only for the first chunk. Each later one is
# first written over the ring of keys, and only then attended to, with the mask of absolute positions, which hides
# nothing there: tokens see those after them in the chunk and have lost those before it that their window holds. Only
# chunks of one token are right.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 lightning==2.6.6 litgpt==0.5.13
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from litgpt import GPT, Config

torch.set_grad_enabled(False)
length, window = 12, 4
torch.manual_seed(0)
model = GPT(Config(
    block_size=32, n_layer=2, n_embd=32, n_head=4, n_query_groups=2, head_size=8, padded_vocab_size=64,
    rotary_percentage=1.0, parallel_residual=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
    intermediate_size=48, bias=False, sliding_window_size=window, sliding_window_indices=[1, 0],
)).eval()
for parameter in model.parameters():
    if parameter.ndim > 1:
        parameter.normal_(0, 0.3)
tokens = torch.randint(64, (1, length))
positions = torch.arange(length)


def read(tokens, step):
    """Logits with a cache, so many tokens at a time."""
    model.set_kv_cache(1)
    parts = [model(tokens[:, i : i + step], positions[i : i + step], i + step) for i in range(0, length, step)]
    return torch.cat(parts, 1)[0]


whole = model(tokens)[0]
try:
    read(tokens, length)
    asked = False
except ValueError as error:
    asked = f"chunked prefill with chunk size <= {window}" in str(error)
print("asks for chunks:", asked)
apart = {}
for step in 4, 3, 2, 1:
    apart[step] = [float(value) for value in (read(tokens, step) - whole).abs().amax(-1)]
    print(f"in chunks of {step}, difference of the logits of each token:", [round(each, 2) for each in apart[step]])
# A later token of the second chunk is changed: what its first one says must stay.
others = tokens.clone()
others[:, 7] = (tokens[:, 7] + 1) % 64
leak = [float((f(others) - f(tokens)).abs().max()) for f in (lambda x: model(x)[0, 4], lambda x: read(x, 4)[4])]
print(f"logits of token 4 change with token 7 by {leak[0]:.2g} without a cache, by {leak[1]:.2g} in chunks of 4")
print("litgpt", importlib.metadata.version("litgpt"))
right = max(apart[1]) < 1e-3 and max(max(apart[step][:3]) for step in apart if step > 2) < 1e-3
sys.exit(not (asked and right and all(max(apart[step]) > 0.1 for step in (2, 3, 4)) and leak[0] == 0 < 0.1 < leak[1]))
PYTHON
