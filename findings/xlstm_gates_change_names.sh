#!/bin/sh
# xlstm 2.0.6, torch 2.13.0 (CPU): the gates of sLSTMLayer by the names of their parameters.
# Expected: fgate makes the forget gate and igate the input gate. Seen: the layer hands them to the cell, whose order is input,
# forget, z, output, the other way around: with fgate and igate exchanged the cell's equations give the layer's output to 1e-6, and
# as they are called they are far off. Who ports weights by name gets another model.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy packaging
"$folder/venv/bin/pip" install --quiet --no-deps xlstm==2.0.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from xlstm import sLSTMLayer, sLSTMLayerConfig

torch.manual_seed(0)
layer = sLSTMLayer(sLSTMLayerConfig(embedding_dim=4, num_heads=1, conv1d_kernel_size=0, backend="vanilla", bias_init="zeros"))
x = torch.randn(1, 6, 4)


def equations(input_gate, forget_gate):
    c = n = torch.zeros(4)
    rows = []
    for token in x[0]:
        i, f, z, o = (gate(token) for gate in (input_gate, forget_gate, layer.zgate, layer.ogate))
        written, kept = torch.exp(i), torch.sigmoid(f)
        c, n = kept * c + written * torch.tanh(z), kept * n + written
        h = torch.sigmoid(o) * c / n
        rows.append((h - h.mean()) / torch.sqrt(h.var(unbiased=False) + 1e-5))
    return torch.stack(rows)


with torch.no_grad():
    found = layer(x)[0]
    called = float((found - equations(layer.igate, layer.fgate)).abs().max())
    exchanged = float((found - equations(layer.fgate, layer.igate)).abs().max())
print("torch", torch.__version__, "as they are called:", called, "exchanged:", exchanged)
sys.exit(not (exchanged < 1e-5 < 1e-2 < called))
PYTHON
