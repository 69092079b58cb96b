#!/bin/sh
# transformers 5.23.0, torch 2.13.0: LSHSelfAttention of a Reformer decoder, in float32, for a token that sees only itself.
# Expected: its own value, as the weights of a softmax sum to 1; the first token of every text sees nothing else. Seen: 1.0035 times its
# value with 4 rounds of hashing. A token's score with itself is -1e5, where float32 has steps of 0.0078, and rounds are merged by
# e^(z - logsumexp(z)), the logarithm of 4 rounded to such a step. In float64 it is 1. Who compares with it should compare in float64, and
# who ports it should let a softmax subtract the largest score first.
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
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

torch.manual_seed(0)
config = transformers.ReformerConfig(
    attention_head_size=8, num_attention_heads=2, hidden_size=16, lsh_attn_chunk_length=4, num_hashes=4, num_buckets=4,
    is_decoder=True, hash_seed=0, lsh_attention_probs_dropout_prob=0.0,
)
layer = LSHSelfAttention(config).eval()
x = torch.randn(1, 32, 16)
with torch.no_grad():
    single = float((layer(x).hidden_states[0, 0] / layer.value(x)[0, 0]).mean())
    layer, x = layer.double(), x.double()
    double = float((layer(x).hidden_states[0, 0] / layer.value(x)[0, 0]).mean())
print("transformers", transformers.__version__, "the first token's output over its value: float32", single, "float64", double)
sys.exit(not (abs(single - 1) > 0.002 and abs(double - 1) < 1e-6))
PYTHON
