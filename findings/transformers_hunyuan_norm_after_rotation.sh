#!/bin/sh
# transformers 5.23.0, torch 2.13.0: HunYuanDenseV1ForCausalLM has rotary positions and norms of queries and keys with a scale for each feature.
# Expected: the norm before the rotation, as in Qwen3, Gemma 3, OLMo 2 and others; logits then depend on distances alone, so that position_ids
# of 9, 10, ... give those of 0, 1, ... Seen: the norm comes after it. Its scales, once they are trained, differ for the two features of a pair, and
# positions are no longer relative: the shift changes the logits, and so does padding on the left without position_ids. A new model, whose
# scales are 1, does not show it, nor would a comparison of new models. Ends with 0 as long as this is so, with 1 once it changes.
# Downloads PyTorch into a temporary folder.
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

size = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
tokens = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(0))
positions = torch.arange(12).expand(2, -1)
padded, mask = (torch.nn.functional.pad(x, (5, 0), value=value) for x, value in ((tokens, 3), (torch.ones_like(tokens), 0)))
found = {}
for name in ("Qwen3", "HunYuanDenseV1"):
    torch.manual_seed(0)
    config = getattr(transformers, name + "Config")(**size, intermediate_size=48, initializer_range=0.3, pad_token_id=0)
    model = getattr(transformers, name + "ForCausalLM")(config).eval()
    for scales in ("new", "trained"):
        if scales == "trained":
            for path, parameter in model.named_parameters():
                if any(part in path for part in ("q_norm", "k_norm", "query_layernorm", "key_layernorm")):
                    torch.nn.init.uniform_(parameter, 0.5, 1.5)
        with torch.no_grad():
            logits = model(tokens, use_cache=False).logits
            shifted = model(tokens, position_ids=positions + 9, use_cache=False).logits
            left = model(padded, attention_mask=mask, use_cache=False).logits[:, 5:]
        found[name, scales] = [float((other - logits).abs().max() / logits.abs().max()) for other in (shifted, left)]
print("transformers", transformers.__version__, "relative change by a shift, by padding on the left:", found)
changed = min(found.pop(("HunYuanDenseV1", "trained")))
sys.exit(not (changed > 1e-3 and max(map(max, found.values())) < 1e-4))
PYTHON
