#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): two texts in one row, as DataCollatorWithFlattening packs them, with position_ids that begin at 0 again, and sdpa
# or eager attention. Expected: one behavior, whether a new cache is to be filled or not: logits of the texts by themselves, or those of one long text. Seen:
# with use_cache=False the causal mask is made for each text apart and logits are theirs to 1e-6; with use_cache=True, the default of a call, the second text
# sees the first, and logits are off by more than the largest; the loss of a call with labels= is another, too. No warning. Who measures a loss of packed rows
# needs use_cache=False.
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

torch.set_num_threads(1)
sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
generator = torch.Generator().manual_seed(0)
texts = [torch.randint(3, 40, (length,), generator=generator).tolist() for length in (5, 7)]
packed = transformers.DataCollatorWithFlattening()([{"input_ids": text} for text in texts])
inputs = {key: torch.as_tensor(packed[key]) for key in ("input_ids", "position_ids", "labels")}
found = {}
for name, options in {"Llama": {}, "Qwen2": {}, "Mistral": {"sliding_window": None}}.items():
    for implementation in ("sdpa", "eager"):
        torch.manual_seed(0)
        config = getattr(transformers, name + "Config")(**sizes, **options, attn_implementation=implementation)
        model = getattr(transformers, name + "ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.3)
            parts = [model(torch.tensor([text]), labels=torch.tensor([text])) for text in texts]
            apart, loss = torch.cat([part.logits[0] for part in parts]), sum(part.loss * n for part, n in zip(parts, (4, 6))) / 10
            for use_cache in (None, True, False):
                y = model(**inputs, use_cache=use_cache)
                error = (y.logits[0] - apart).abs().max() / apart.abs().max()
                found[name, implementation, use_cache] = round(float(error), 6), round(float(y.loss - loss), 6)
print("transformers", transformers.__version__, "relative change of the logits and change of the loss, by use_cache:", found)
wrong, right = ([f for key, f in found.items() if (key[2] is False) == kind] for kind in (False, True))
sys.exit(not (all(f[0] > 0.02 and abs(f[1]) > 1e-3 for f in wrong) and all(f[0] < 1e-4 and abs(f[1]) < 1e-4 for f in right)))
PYTHON
