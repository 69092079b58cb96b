#!/bin/sh
# sinkhorn-transformer 0.11.4, torch 2.13.0 (CPU): SinkhornAttention of queries, keys and values, with its defaults. Expected: a mean of values, those of the
# own bucket and of the bucket that was sorted to it (arXiv:2002.11296), so that values of 0 give 0. Seen: where keys of the sorted bucket are attended to, it
# is these keys themselves that are averaged; the values there are not read, and values of 0 give what is not 0: 4 % of the usual output, 85 % with
# permutations (non_permutative=False). n_sortcut above 0 and the causal class take values. Weights trained with it compute another model than the paper's.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy sinkhorn-transformer==0.11.4
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from sinkhorn_transformer.sinkhorn_transformer import SinkhornAttention, SinkhornCausalAttention

torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 2, 64, 8)
sizes = {"bucket_size": 8, "dim": 16, "dim_heads": 8, "heads": 2, "max_seq_len": 64}
layers = {
    "default": SinkhornAttention(**sizes), "permutations": SinkhornAttention(**sizes, non_permutative=False),
    "n_sortcut": SinkhornAttention(**sizes, n_sortcut=2), "causal": SinkhornCausalAttention(**sizes),
}
found = {}
with torch.no_grad():
    layers["causal"].null_values.zero_()
    for name, layer in layers.items():
        torch.manual_seed(1)
        y = layer.eval()(q, k, v)
        torch.manual_seed(1)
        found[name] = float(layer(q, k, 0 * v).abs().max() / y.abs().max())
print("sinkhorn-transformer", importlib.metadata.version("sinkhorn-transformer"), "output of values of 0, relative to that of values:", found)
sys.exit(not (found["default"] > 0.02 and found["permutations"] > 0.3 and found["n_sortcut"] == 0 and found["causal"] == 0))
PYTHON
