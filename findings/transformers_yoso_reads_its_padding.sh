#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): YosoModel and its heads called with attention_mask. Expected, as in BERT: what is masked does not change the
# outputs of the text, and a text has the same outputs alone and padded. Seen: the mask has no effect at all. It arrives in the layers as ones and zeros,
# where they expect 0 and -10000: 1 + mask / 10000, made an integer, is 1 for both. A text of 21 tokens with 11 of padding gets outputs that are off by a
# fifth of the largest and more, and the mean over a batch depends on how far it is padded. conv_window alone reads the mask as it is meant. No warning.
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
sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
generator = torch.Generator().manual_seed(0)
text = torch.randint(5, 60, (2, 21), generator=generator)
paddings = [torch.randint(5, 60, (2, 11), generator=generator) for _ in range(2)]
mask = (torch.arange(32) < 21).long().expand(2, 32)
found = {}
with torch.no_grad():
    for name in ("Bert", "Yoso"):
        torch.manual_seed(0)
        model = getattr(transformers, name + "Model")(getattr(transformers, name + "Config")(**sizes)).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.25)
        alone = model(text).last_hidden_state
        padded = [model(torch.cat((text, padding), 1), attention_mask=mask).last_hidden_state[:, :21] for padding in paddings]
        unmasked = model(torch.cat((text, paddings[0]), 1)).last_hidden_state[:, :21]
        pairs = {"padded, alone": (padded[0], alone), "other padding": (padded[1], padded[0]), "no mask": (unmasked, padded[0])}
        found[name] = {key: round(float((a - b).abs().max() / b.abs().max()), 4) for key, (a, b) in pairs.items()}
print("transformers", transformers.__version__, "relative differences:", found)
bert, yoso = found["Bert"], found["Yoso"]
hidden = max(bert["padded, alone"], bert["other padding"]) < 1e-4
sys.exit(not (hidden and min(bert["no mask"], yoso["padded, alone"], yoso["other padding"]) > 0.05 and yoso["no mask"] == 0))
PYTHON
