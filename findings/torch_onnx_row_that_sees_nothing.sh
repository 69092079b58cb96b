#!/bin/sh
# torch 2.13.0, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0: torch.onnx.export(dynamo=True) of scaled_dot_product_attention for a query that may
# see nothing. Expected: the 0 that PyTorch gives, for a mask of bool and for one of -inf. Seen: neither. The mask of bool
# gives the mean of all values, the mask of -inf NaN, without a warning. Rows with something to see agree to 1e-6. Padded rows of a batch, or a
# window beside the end of a text, are such queries.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
import onnxruntime
import torch


class Attention(torch.nn.Module):
    def forward(self, q, k, mask):
        return torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=mask)


torch.manual_seed(0)
q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
seen = torch.ones(3, 5, dtype=torch.bool)
seen[1] = False
found = {}
for name, mask in (("bool", seen), ("-inf", torch.zeros(3, 5).masked_fill(~seen, -float("inf")))):
    program = torch.onnx.export(Attention().eval(), (q, k, mask), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    y = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), (q, k, mask))})[0]
    expected = Attention()(q, k, mask).numpy()
    others = float(np.abs(y - expected)[:, :, [0, 2]].max())
    mean = float(np.abs(y[:, :, 1] - k.mean(2).numpy()).max())
    found[name] = [float(np.abs(z[:, :, 1]).max()) for z in (expected, y)], mean, others
print("torch", torch.__version__, "onnxruntime", onnxruntime.__version__)
print("largest of a row that sees nothing, PyTorch and exported; exported from the mean of all; others apart:", found)
right = all(f[0][0] == 0 and f[2] < 1e-5 for f in found.values())
sys.exit(not (right and found["bool"][0][1] > 0.01 and found["bool"][1] < 1e-5 and np.isnan(found["-inf"][0][1])))
PYTHON
