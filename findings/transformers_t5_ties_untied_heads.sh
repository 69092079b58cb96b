#!/bin/sh
# transformers 5.23.0, torch 2.13.0: T5Config(tie_word_embeddings=False) is how every released T5 v1.1 and Flan-T5 says that its head is
# not its embedding. Expected: a model made from it has a head of its own, as the files have, 76,961,152 parameters in the small size.
# Seen: the configuration says tie_word_embeddings=True after it is made, the head of a new model is the embedding (60,511,616 parameters
# with the sizes of v1.1 small), and a model saved and its config.json say so too; only the scale of the logits is left out. Files that hold
# both arrays are loaded untied, with a warning. Who counts, trains or compares T5 v1.1 from its sizes must give the head an array.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json
import sys

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

sizes = {"vocab_size": 32128, "d_model": 512, "d_ff": 1024, "d_kv": 64, "num_layers": 8, "num_heads": 6}
config = T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
model = T5ForConditionalGeneration(config)
tied = model.lm_head.weight is model.shared.weight
count = sum(parameter.numel() for parameter in model.parameters())
model.save_pretrained("saved")
written = json.load(open("saved/config.json"))
said = written["tie_word_embeddings"], written["scale_decoder_outputs"]
print("transformers", transformers.__version__, "torch", torch.__version__)
print("tie_word_embeddings", config.tie_word_embeddings, "tied", tied, f"{count:,} parameters, written {said}")
sys.exit(not (config.tie_word_embeddings and tied and count == 60_511_616 and said == (True, False)))
PYTHON
