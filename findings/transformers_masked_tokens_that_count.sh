#!/bin/sh
# transformers 5.23.0, torch 2.13.0: encoders called with attention_mask of 0 for the last 8 of 56 tokens. Expected, as in BERT: what is masked
# does not change the outputs of the text. Seen: in ConvBERT, CANINE and Funnel it does, by 10 % and more of the largest output. ConvBERT's and
# CANINE's convolutions read over the end of the text and take no mask, nor does Funnel's pooling of pairs, where a text ends within one (with
# 49 tokens nothing changes). A text's output therefore depends on how it was padded; who compares a port has to pad as they do.
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

bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "initializer_range": 0.3}
strides = dict.fromkeys(("attend_from_chunk_width", "attend_to_chunk_width", "attend_from_chunk_stride", "attend_to_chunk_stride"), 8)
options = {
    "Bert": {**bert, "vocab_size": 40},
    "ConvBert": {**bert, "vocab_size": 40, "embedding_size": 32, "conv_kernel_size": 3},
    "Canine": {**bert, **strides, "local_transformer_stride": 4, "downsampling_rate": 4, "num_hash_buckets": 64},
    "Funnel": {"vocab_size": 40, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "initializer_range": 0.3},
}
tokens = torch.randint(3, 40, (1, 48), generator=torch.Generator().manual_seed(0))
mask = (torch.arange(56) < 48).long()[None]
found = {}
for name, option in options.items():
    torch.manual_seed(0)
    model = getattr(transformers, name + "Model")(getattr(transformers, name + "Config")(**option)).eval()
    with torch.no_grad():
        one, other = (model(torch.nn.functional.pad(tokens, (0, 8), value=x), attention_mask=mask)[0][:, :48] for x in (5, 9))
    changed = ((one - other).abs().amax(-1)[0] > 1e-4).nonzero().flatten().tolist()
    found[name] = float((one - other).abs().max() / one.abs().max()), len(changed)
print("transformers", transformers.__version__, "(relative change, places of 48 that change):", found)
sys.exit(not (found.pop("Bert")[0] < 1e-6 and min(apart for apart, _ in found.values()) > 0.05))
PYTHON
