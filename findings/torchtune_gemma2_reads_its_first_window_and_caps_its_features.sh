#!/bin/sh
# torchtune 0.6.1, torchao 0.16.0, torch 2.13.0 (CPU): gemma2, with its cache and with final_capping_value. Expected:
# one token at a time with its cache, as generate() reads, the logits of the whole text; and logits that are at most
# final_capping_value, as Gemma 2 (arXiv:2408.00118) and transformers have it. Seen: in layers with a window the mask of
# the window is made as if the only query were token 0, so that each new token sees the first tokens of the text, never
# those before it, once the text is longer than the window (4096 by default). And the features before the last
# projection are capped, not the logits, which go far beyond 30. Names and shapes of weights are those of the model, so
# that a checkpoint loads. No error, no warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchtune==0.6.1 torchao==0.16.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from torchtune.models.gemma2._component_builders import gemma2

torch.set_grad_enabled(False)
length, prompt, window = 12, 3, 4


def make(window, scale=0.4):
    torch.manual_seed(0)
    model = gemma2(
        vocab_size=32, num_layers=1, num_heads=2, head_dim=8, num_kv_heads=1, embed_dim=16, intermediate_dim=24,
        max_seq_len=32, sliding_window_size=window,
    ).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, scale)
    return model


def with_cache(model, tokens):
    """Logits of a prompt at once and of all other tokens one at a time."""
    model.setup_caches(1, torch.float32, decoder_max_seq_len=32)
    mask, positions = torch.ones(1, 32, 32, dtype=torch.bool).tril(), torch.arange(length)[None]
    parts = [slice(0, prompt), *(slice(i, i + 1) for i in range(prompt, length))]
    logits = [model(tokens[:, part], mask=mask[:, part], input_pos=positions[:, part]) for part in parts]
    model.reset_caches()
    return torch.cat(logits, 1)[0]


tokens = torch.randint(32, (1, length), generator=torch.Generator().manual_seed(1))
apart, moved = {}, {}
for size in 32, window:
    model = make(size)
    whole = model(tokens)[0]
    cached = with_cache(model, tokens)
    apart[size] = [float(value) for value in (cached - whole).abs().amax(-1)]
    print(f"window of {size}, difference of the logits of each token:", [round(value, 2) for value in apart[size]])
    others = tokens.clone()
    for name, at in ("first", 0), ("one before the last", length - 2):
        others = tokens.clone()
        others[:, at] = (tokens[:, at] + 1) % 32
        change = float((with_cache(model, others)[-1] - cached[-1]).abs().max())
        moved[size, name] = change
        print(f"the logits of token {length - 1} move by {change:.2g} with the {name}")
logits = make(32, scale=4.0)(tokens)
print(f"final_capping_value 30, largest logit {float(logits.abs().max()):.0f}")
print("torchtune", importlib.metadata.version("torchtune"))
right = max(apart[32]) < 1e-3 and max(apart[window][:window]) < 1e-3
sees = min(moved[32, "first"], moved[32, "one before the last"], moved[window, "first"]) > 1e-3
sys.exit(not (right and min(apart[window][window + 1 :]) > 0.1 and sees and moved[window, "one before the last"] == 0
              and float(logits.abs().max()) > 60))
PYTHON
