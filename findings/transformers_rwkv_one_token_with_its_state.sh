#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): RwkvForCausalLM reads a text in two parts, the second with the state that the first returned.
# Expected: the logits of the whole text, however long the second part is. Seen: so if it has two tokens or more; a single token, which is what
# generate() reads, gets other logits altogether, and greedy texts with a cache are not those without, which are the argmax of the logits. The other way
# around than Mamba, whose single tokens are right. use_cache=False is right.
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

torch.manual_seed(0)
config = transformers.RwkvConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, context_length=64)
model = transformers.RwkvForCausalLM(config).eval()
generator = torch.Generator().manual_seed(1)
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, 1 if "embeddings" in name else 0.3, generator=generator)
tokens = torch.randint(3, 40, (2, 24), generator=torch.Generator().manual_seed(0))
found = {}
with torch.no_grad():
    whole = model(tokens, use_cache=False).logits
    for rest in (1, 2, 16):
        state = model(tokens[:, :-rest], use_cache=True).state
        y = model(tokens[:, -rest:], state=state, use_cache=True).logits
        found[rest] = float((y - whole[:, -rest:]).abs().max() / whole.abs().max())
    text, options = tokens[:, :8], {"max_new_tokens": 14, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached, plain = (model.generate(text, use_cache=cache, **options) for cache in (True, False))
    for _ in range(14):
        text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], 1)
unlike = [int((y != text).sum()) for y in (cached, plain)]
print("transformers", transformers.__version__, "relative differences by tokens of the second part:", found)
print("tokens of 28 unlike the argmax, with a cache and without:", unlike)
sys.exit(not (found[1] > 0.01 and max(found[2], found[16]) < 1e-4 and unlike[0] > 3 and unlike[1] == 0))
PYTHON
