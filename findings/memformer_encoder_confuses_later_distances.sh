#!/bin/sh
# memformer 0.3.1, torch 2.13.0 (CPU): Memformer, whose encoder sees both ways and whose decoder is causal, with relative position biases as in T5. Expected:
# the encoder tells distances to earlier and to later tokens apart, and the decoder has its buckets for earlier ones, as in T5. Seen: the flag is turned
# around: in the encoder all later tokens have the bucket of distance 0, and half of the decoder's 32 buckets are kept for later tokens, which it never sees,
# so that 16 are left for those before.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy memformer==0.3.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from memformer import Memformer

torch.manual_seed(0)
sizes = {"num_tokens": 20, "max_seq_len": 16, "depth": 1, "heads": 2}
model = Memformer(dim=16, num_memory_slots=2, mem_update_attn_heads=2, **{f"{part}_{key}": value for part in ("enc", "dec") for key, value in sizes.items()})
found = {}
with torch.no_grad():
    for name, bias in (("encoder", model.encoder.layer_blocks.rel_pos_emb), ("decoder", model.decoder.net.layer_blocks.rel_pos_emb)):
        bias.relative_attention_bias.weight.copy_(torch.arange(32.0)[:, None].expand(32, 2))  # the bias of a bucket is its number
        buckets = bias(8, 8)[0, 0].int()
        found[name] = {"token 0 to 0 ... 7": buckets[0].tolist(), "token 7 to 0 ... 7": buckets[7].tolist()}
        found[name]["buckets for earlier"] = bias(999, 999)[0, 0].tril().unique().numel()
print("memformer", importlib.metadata.version("memformer"), "buckets:", found)
wrong = found["encoder"]["token 0 to 0 ... 7"] == [0] * 8 and found["encoder"]["token 7 to 0 ... 7"] == list(range(7, -1, -1))
sys.exit(not (wrong and found["decoder"]["buckets for earlier"] == 16 and min(found["decoder"]["token 0 to 0 ... 7"][1:]) >= 16))
PYTHON
