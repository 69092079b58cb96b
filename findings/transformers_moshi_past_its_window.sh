#!/bin/sh
# transformers 5.23.0, torch 2.13.0: MoshiForCausalLM, a text longer than sliding_window (3000 by default), read token by token with a cache.
# Expected: the logits of the whole text, as Mistral with the same window gives. Seen: so for the first sliding_window tokens; from then on all
# logits are others. No error. With a window longer than the text both are the same.
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
import transformers

sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
tokens = torch.randint(3, 40, (2, 24), generator=torch.Generator().manual_seed(0))
found = {}
for name, sizes_of in (("Moshi", {"ffn_dim": 48}), ("Mistral", {"intermediate_size": 48})):
    for window in (6, 64):
        torch.manual_seed(0)
        config = getattr(transformers, name + "Config")(
            **sizes, **sizes_of, sliding_window=window, max_position_embeddings=64, initializer_range=0.3, pad_token_id=0
        )
        model = getattr(transformers, name + "ForCausalLM")(config).eval()
        cache, rows = None, []
        with torch.no_grad():
            whole = model(tokens, use_cache=False).logits
            for token in tokens.T:
                read = model(token[:, None], past_key_values=cache, use_cache=True)
                cache = read.past_key_values
                rows.append(read.logits)
        apart = (torch.cat(rows, 1) - whole).abs().amax((0, 2)) / whole.abs().max()
        found[name, window] = float(apart.max()), (apart > 1e-3).nonzero().flatten().tolist()[:1]
print("transformers", transformers.__version__, "(model, window): largest relative difference, the first place that differs:", found)
moshi = found.pop(("Moshi", 6))
sys.exit(not (moshi[0] > 0.01 and moshi[1] == [6] and max(f[0] for f in found.values()) < 1e-4))
PYTHON
