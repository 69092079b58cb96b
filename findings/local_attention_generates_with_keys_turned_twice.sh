#!/bin/sh
# local-attention 1.11.2, torch 2.13.0 (CPU): LocalTransformer.generate with its defaults, greedy (temperature=0). Expected: the text that is generated
# without a cache (use_kv_cache=False), which is the argmax of the model's own logits. Seen: another after a few tokens. LocalMHA returns the keys that it has
# just rotated as its cache and rotates them again with every token, so that a key is turned by the sum of its places; with qk_rmsnorm=True the cached scores
# have another scale as well. Logits of a text read token by token are as far from those of the whole as logits are large, with exact_windowsize=True too.
# use_dynamic_pos_bias=True, which has no rotation, agrees to 1e-6.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy local-attention==1.11.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from local_attention.transformer import LocalTransformer

torch.set_num_threads(1)
sizes = {"num_tokens": 40, "dim": 32, "depth": 1, "max_seq_len": 64, "local_attn_window_size": 8, "heads": 2, "dim_head": 16, "causal": True}
tokens = torch.randint(0, 40, (2, 24), generator=torch.Generator().manual_seed(0))
found = {}
for name, options in {
    "default": {}, "exact window": {"exact_windowsize": True}, "qk_rmsnorm": {"qk_rmsnorm": True}, "no rotation": {"use_dynamic_pos_bias": True},
}.items():
    torch.manual_seed(0)
    model = LocalTransformer(**sizes, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
        whole, cache, steps = model(tokens), None, []
        for length in range(1, tokens.shape[1] + 1):
            y, cache = model(tokens[:, :length], cache=cache, return_cache=True)
            steps.append(y[:, -1])
        apart = (torch.stack(steps, 1) - whole).abs().amax((0, 2)) / whole.abs().max()
        cached, plain = (model.generate(tokens[:, :5], 24, temperature=0.0, use_kv_cache=cache) for cache in (True, False))
        greedy = model(torch.cat([tokens[:, :5], plain], 1)).argmax(-1)[:, 4:-1]
    found[name] = [float(apart[:2].max()), float(apart.max()), int((cached != plain).sum()), int((plain != greedy).sum())]
print("local-attention", importlib.metadata.version("local-attention"), "logits apart, first two tokens and all;")
print("tokens of 48 generated with a cache unlike those without; these unlike the argmax:", found)
right = found.pop("no rotation")
wrong = all(f[1] > 0.2 and f[2] > 5 and f[3] == 0 for f in found.values())
sys.exit(not (wrong and right[1] < 1e-4 and right[2:] == [0, 0] and found["default"][0] < 1e-4))
PYTHON
