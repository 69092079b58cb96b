#!/bin/sh
# x-transformers 2.31.10, torch 2.13.0 (CPU): a Decoder with some of its options, a text read token by token with cache=, as AutoregressiveWrapper.generate
# reads it. Expected: the logits of the whole text, as by default and with the other options tried, or a refusal, as the model has a flag, can_cache_kv, which
# is False for attn_selective. Seen: other logits and other greedy texts, with the flag True. With a cache the layer is given the newest token alone, and what
# these options need of the others is gone: shift_tokens=1 takes 0 for the features of the token before, attn_data_dependent_alibi=True (the Forgetting
# Transformer, arXiv:2503.02130) knows the newest token's decay and not those before it. With attn_orthog_projected_values=True logits change with later
# tokens even, in a causal Decoder.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy x-transformers==2.31.10
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

torch.set_num_threads(1)
tokens = torch.randint(0, 30, (2, 20), generator=torch.Generator().manual_seed(0))
other = torch.cat([tokens[:, :-1], (tokens[:, -1:] + 1) % 30], 1)
wrong = ("shift_tokens", "attn_data_dependent_alibi", "attn_orthog_projected_values")
options = {"default": {}, "rotary": {"rotary_pos_emb": True}, "alibi_pos_bias": {"alibi_pos_bias": True}}
options["attn_talking_heads"] = {"attn_pre_talking_heads": True}
options |= {name: {name: 1 if name == "shift_tokens" else True} for name in wrong}
found = {}
for name, choice in options.items():
    torch.manual_seed(0)
    layers = Decoder(dim=32, depth=2, heads=2, **choice)
    model = TransformerWrapper(num_tokens=30, max_seq_len=64, attn_layers=layers).eval()
    wrapper = AutoregressiveWrapper(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
        whole, cache, steps = model(tokens), None, []
        for length in range(1, 21):
            y, cache = model(tokens[:, :length], return_intermediates=True, cache=cache)
            steps.append(y[:, -1])
        size = float(whole.abs().max())
        apart = float((torch.stack(steps, 1) - whole).abs().max()) / size
        later = float((model(other) - whole)[:, :-1].abs().max()) / size
        texts = [wrapper.generate(tokens[:, :6], 24, temperature=0.0, cache_kv=cached) for cached in (True, False)]
    found[name] = [round(apart, 6), round(later, 6), int((texts[0] != texts[1]).sum()), model.can_cache_kv]
print("x-transformers", importlib.metadata.version("x-transformers"))
print("logits apart with a cache, change by a later token, tokens of 48 generated otherwise, whether it says it can be cached:", found)
rest = [f for name, f in found.items() if name not in wrong]
silent = all(found[name][0] > 0.02 and found[name][3] for name in wrong) and found[wrong[0]][2] > 10 and found[wrong[2]][2] > 10
causal = all(found[name][1] < 1e-4 for name in wrong[:2]) and found[wrong[2]][1] > 0.005
sys.exit(not (silent and causal and all(f[0] < 1e-4 and f[1] < 1e-4 and f[2] == 0 for f in rest)))
PYTHON
