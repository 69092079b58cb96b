#!/bin/sh
# litgpt 0.5.13, torch 2.13.0 (CPU): a model with attention_logit_softcapping=50, as Gemma 2 has it, read with its cache
# (set_kv_cache and input_pos), as its generate functions and LLM.generate read a prompt. Expected: the logits of the
# model without a cache, as it gives them without soft-capping. Seen: the mask of the cache is of True and False and is
# added to the capped scores, so that a key that may be seen has 1 more than one that must not be: the prompt is read
# with later tokens. One token at a time it is right with input_pos_maxp1, which cuts off the keys to come; without it,
# which its documentation allows, zeros of the unused part of the cache have a share of the attention. No error, no
# warning.
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
from litgpt.generate.base import generate_fn

torch.set_grad_enabled(False)
length = 12
found = {}
for cap in None, 50.0:
    torch.manual_seed(0)
    model = GPT(Config(
        block_size=32, n_layer=2, n_embd=32, n_head=4, n_query_groups=2, head_size=8, padded_vocab_size=64,
        rotary_percentage=1.0, parallel_residual=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
        intermediate_size=48, bias=False, attention_logit_softcapping=cap,
    )).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.3)
    tokens = torch.randint(64, (1, length))
    others = tokens.clone()
    others[:, -1] = (tokens[:, -1] + 1) % 64
    positions = torch.arange(length)

    def read(tokens, step, cut):
        """Logits with a cache, so many tokens at a time."""
        model.set_kv_cache(1)
        parts = [
            model(tokens[:, i : i + step], positions[i : i + step], i + step if cut else None)
            for i in range(0, length, step)
        ]
        return torch.cat(parts, 1)

    whole = model(tokens)
    cases = {"prompt at once": (length, True), "one at a time": (1, True), "without input_pos_maxp1": (1, False)}
    for name, (step, cut) in cases.items():
        found[cap, name] = float((read(tokens, step, cut) - whole).abs().max())
    change = (read(others, length, True) - read(tokens, length, True)).abs()
    found[cap, "first logits by the last token"] = float(change[0, 0].max())
    greedy, text = [], tokens[0]
    for _ in range(6):
        greedy.append(int(model(text[None])[0, -1].argmax()))
        text = torch.cat([text, torch.tensor(greedy[-1:])])
    model.set_kv_cache(1)
    made = [int(t) for t in generate_fn(model, tokens[0], length + 6, temperature=0.0, include_prompt=False,
                                        include_eos=True)]
    found[cap, "tokens that generate_fn takes as without a cache, of 6"] = sum(a == b for a, b in zip(made, greedy))
for (cap, name), value in found.items():
    print(f"soft-capping {cap}, {name}: {value:.2g}")
print("litgpt", importlib.metadata.version("litgpt"))
plain, capped = ([value for (cap, _), value in found.items() if cap == kind] for kind in (None, 50.0))
sys.exit(not (max(plain[:3]) < 1e-3 and plain[3] == 0 and plain[4] == 6 and capped[0] > 0.1 and capped[1] < 1e-3
              and capped[2] > 0.1 and capped[3] > 0.1))
PYTHON
