#!/bin/sh
# transformers 5.23.0, torch 2.13.0: PerceiverForMaskedLM answers at all places that its table has, however long the text is.
# Expected: logits of (batch, tokens, vocab_size), as of every other ...ForMaskedLM. Seen: (batch, max_position_embeddings, vocab_size),
# 2048 rows for a text of 9 bytes, at the cost of 2048. Those at the text's places are the first; nothing cuts the rest off, and labels as
# long as the text end in an error of the loss about batch sizes. With 6 tokens of padding behind the text, masked, the first rows are
# the same. Who ports it needs queries for the text's places alone.
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
config = transformers.PerceiverConfig(
    d_model=16, d_latents=32, num_latents=4, num_self_attends_per_block=1, qk_channels=32, v_channels=32, vocab_size=30,
    max_position_embeddings=20,
)
model = transformers.PerceiverForMaskedLM(config).eval()
tokens = torch.randint(6, 30, (2, 9))
padded = torch.nn.functional.pad(tokens, (0, 6))
mask = (torch.arange(15) < 9).long().expand(2, 15)
with torch.no_grad():
    logits = model(tokens).logits
    masked = model(padded, attention_mask=mask).logits
try:
    model(tokens, labels=tokens)
    loss = "computed"
except ValueError as error:
    loss = str(error)
same = float((logits - masked).abs().max())
print("transformers", transformers.__version__, "logits", tuple(logits.shape), "difference with padding", same, "loss:", loss)
sys.exit(not (logits.shape == (2, 20, 30) and same < 1e-5 and "batch_size" in loss))
PYTHON
