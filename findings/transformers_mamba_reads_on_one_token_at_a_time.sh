#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU, without the kernels): Mamba and FalconMamba read a text in two parts, the second with the
# cache_params that the first returned. Expected: the logits of the whole text, as Mamba-2 gives for the same split. Seen: so if the second
# part is one token; if it is longer, the scan starts from an empty state, and only the convolution goes on. No error, no warning. A prompt in
# chunks or the second turn of a conversation is answered without what was read before.
# Ends with 0 as long as this is so, with 1 once it changes.
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

size = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2}
tokens = torch.randint(3, 40, (2, 24), generator=torch.Generator().manual_seed(0))
found = {}
for name, options in (("Mamba", {}), ("FalconMamba", {}), ("Mamba2", {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8})):
    torch.manual_seed(0)
    config = getattr(transformers, name + "Config")(**size, **options, state_size=8, initializer_range=0.3)
    model = getattr(transformers, name + "ForCausalLM")(config).eval()
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        apart = []
        for first in (23, 20, 8):
            read = model(tokens[:, :first], use_cache=True)
            rest = model(tokens[:, first:], cache_params=read.cache_params, use_cache=True).logits
            apart.append(float((rest - whole[:, first:]).abs().max() / whole.abs().max()))
    found[name] = apart
print("transformers", transformers.__version__, "relative differences, 23 tokens and 1, 20 and 4, 8 and 16:", found)
right = max(found["Mamba2"] + [found["Mamba"][0], found["FalconMamba"][0]])
sys.exit(not (right < 1e-4 and min(found["Mamba"][1:] + found["FalconMamba"][1:]) > 1e-2))
PYTHON
