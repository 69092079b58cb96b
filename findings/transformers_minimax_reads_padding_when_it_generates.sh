#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): MiniMaxForCausalLM.generate() of texts padded on the left with attention_mask of 0
# there, greedy. Expected: the tokens of each text alone, the argmax of its own logits. Seen: so where the first layer has
# softmax attention or use_cache=False; where it is linear, as in MiniMax-Text-01, other tokens. The cache says that it holds
# nothing, as its layer 0 has no keys, so that the mask of a later token is made for a text of one token, and the token sees the
# padding. The prompt itself is read rightly. No error, no warning. Texts of several lengths in a batch need use_cache=False.
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
sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
sizes |= {"num_key_value_heads": 2, "head_dim": 8}
tokens = torch.randint(3, 40, (8, 12), generator=torch.Generator().manual_seed(0))
padded, mask = torch.nn.functional.pad(tokens, (9, 0)), torch.nn.functional.pad(torch.ones_like(tokens), (9, 0))
options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
found = {}
for layers in (["linear_attention", "full_attention"], ["full_attention", "linear_attention"]):
    generator = torch.Generator().manual_seed(0)
    config = t.MiniMaxConfig(**sizes, intermediate_size=48, num_local_experts=4, layer_types=layers)
    model = t.MiniMaxForCausalLM(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1 if "embed" in path else 1.2 * parameter.shape[-1] ** -0.5, generator=generator)
        want = tokens
        for _ in range(8):
            want = torch.cat([want, model(want, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        alone = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
        batch = [model.generate(padded, attention_mask=mask, use_cache=cached, **options)[:, 9:] for cached in (True, False)]
    found[layers[0]] = [int((texts == want).all(1).sum()) for texts in (alone, *batch)]
print("transformers", t.__version__, "texts of 8 that are the argmax: alone, padded, padded without a cache:", found)
wrong = found.pop("linear_attention")
sys.exit(not (wrong[0] == wrong[2] == 8 and wrong[1] < 6 and found["full_attention"] == [8, 8, 8]))
PYTHON
