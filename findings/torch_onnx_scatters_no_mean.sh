#!/bin/sh
# torch 2.13.0, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0: torch.onnx.export(dynamo=True) of scatter_reduce(reduce="mean"), the mean of the
# messages of a node or of the tokens of a cluster. Expected: the mean, or an error, as ONNX's ScatterElements has no such reduction. Seen: neither an
# error nor a warning; the exported operator has reduction="none", and the last value of each index is the result: 2, 3 for 1.5, 3. "sum", "amax",
# "amin" and "prod" are exported right. A sum of values over a sum of ones serves.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import onnxruntime
import torch


class Scatter(torch.nn.Module):
    def __init__(self, kind, itself):
        super().__init__()
        self.kind, self.itself = kind, itself

    def forward(self, x, index):
        return torch.ones(1, 2).scatter_reduce(1, index, x, self.kind, include_self=self.itself)


x, index = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0, 0, 1]])
found = {}
for kind, itself in (("mean", False), ("mean", True), ("sum", True), ("prod", True), ("amax", True), ("amin", True)):
    layer = Scatter(kind, itself).eval()
    program = torch.onnx.export(layer, (x, index), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {i.name: value.numpy() for i, value in zip(session.get_inputs(), (x, index))}
    found[kind, itself] = layer(x, index)[0].tolist(), session.run(None, feed)[0][0].tolist()
print("torch", torch.__version__, "onnxruntime", onnxruntime.__version__, "(kind, with what is there): PyTorch, exported:", found)
wrong = [found.pop(("mean", itself)) for itself in (False, True)]
sys.exit(not (wrong[0] == ([1.5, 3.0], [2.0, 3.0]) and wrong[1][0] != wrong[1][1] and all(a == b for a, b in found.values())))
PYTHON
