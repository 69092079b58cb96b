#!/bin/sh
# torch 2.13.0, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0: torch.onnx.export(dynamo=True) of functions that PyTorch computes so that nothing
# overflows. Expected: outputs that agree. Seen: the exported program has their plain equations. logcumsumexp of 0 and 200 less than the largest
# is -inf, the logarithm of a cumulative sum of what was underflown; logsigmoid(-200) is -inf, logaddexp(200, 200) inf, log1p(1e-9) 0. For
# inputs near 0 all agree, which is where an export is checked. softplus and logsumexp are right everywhere.
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


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


functions = {
    "logcumsumexp": (lambda x: torch.logcumsumexp(x, 0), [-200.0, 0.0]), "logsigmoid": (torch.nn.functional.logsigmoid, [-200.0, 200.0]),
    "logaddexp": (lambda x: torch.logaddexp(x, x), [200.0, -200.0]), "log1p": (torch.log1p, [1e-9, 1e-8]),
    "softplus": (torch.nn.functional.softplus, [-200.0, 200.0]), "logsumexp": (lambda x: torch.logsumexp(x, 0, True), [200.0, 200.0]),
}
found, near = {}, {}
for name, (function, far) in functions.items():
    for inputs, into in ((far, found), ([0.3, -0.7], near)):
        x = torch.tensor(inputs)
        program = torch.onnx.export(Function(function).eval(), (x,), dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
        into[name] = function(x).tolist(), session.run(None, {session.get_inputs()[0].name: x.numpy()})[0].tolist()
print("torch", torch.__version__, "onnxruntime", onnxruntime.__version__, "PyTorch, exported:", found)
agree = all(np.allclose(*pair, atol=1e-6) for pair in near.values())
same = [name for name, pair in found.items() if np.allclose(*pair, rtol=1e-4, atol=0)]
sys.exit(not (agree and same == ["softplus", "logsumexp"]))
PYTHON
