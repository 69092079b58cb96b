#!/bin/sh
# onnx 1.23.2, onnxruntime 1.32.0 (CPU), NumPy 2.4.0: two norms of the standard set. GroupNormalization (opset 21 on) is a function of simpler
# operators, so that both run the same ones. Expected: groups of mean 10,000 and deviation 1 in float32 normalized to some 1e-3, as
# InstanceNormalization does it in onnxruntime. Seen: NaN in both; the variance is the mean of squares less the square of the mean, and negative. And
# RMSNormalization of float16, whose stash_type says by default that it computes in float32: onnxruntime does, onnx's ReferenceEvaluator, against
# which exports are checked, squares in float16, and gives 0 for values of 300 or more.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.0 onnx==1.23.2 onnxruntime==1.32.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnx.reference import ReferenceEvaluator


def outputs(operator, *inputs, **attributes):
    kind = helper.np_dtype_to_tensor_dtype(inputs[0].dtype)
    names = [f"input{i}" for i in range(len(inputs))]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["output"], **attributes)], "graph",
        [helper.make_tensor_value_info(name, kind, x.shape) for name, x in zip(names, inputs)],
        [helper.make_tensor_value_info("output", kind, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    feed = dict(zip(names, inputs))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [runtime.run(None, feed)[0].astype(np.float64) for runtime in (session, ReferenceEvaluator(model))]


rng = np.random.default_rng(0)
x = (rng.normal(size=(2, 8, 256)) + 1e4).astype(np.float32)
wide = x.astype(np.float64)
exact = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
scale, bias = np.ones(8, np.float32), np.zeros(8, np.float32)
of_groups = [bool(np.isnan(y).any()) for y in outputs("GroupNormalization", x, scale, bias, num_groups=8)]
of_instances = float(np.abs(outputs("InstanceNormalization", x, scale, bias)[0] - exact).max())
x = (300 + 100 * rng.random((4, 256))).astype(np.float16)
wide = x.astype(np.float64)
exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True))
of_squares = [float(np.abs(y - exact).max()) for y in outputs("RMSNormalization", x, np.ones(256, np.float16))]
print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__, "onnxruntime first, the reference second")
print("GroupNormalization has NaN:", of_groups, "error of InstanceNormalization in onnxruntime:", of_instances)
print("errors of RMSNormalization in float16:", of_squares)
sys.exit(not (of_groups == [True, True] and of_instances < 0.01 and of_squares[0] < 0.01 and of_squares[1] > 0.5))
PYTHON
