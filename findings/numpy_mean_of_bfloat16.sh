#!/bin/sh
# NumPy 2.4.0, ml_dtypes 0.6.0: np.mean, np.sum, np.var and np.std of a bfloat16 array, such as safetensors, JAX and orbax hand out.
# Expected: sums in float32, as np.mean has for float16, jnp.sum and torch.sum for bfloat16; a mean of ones that is 1. Seen: one number
# after another is added in bfloat16, where 256 + 1 is 256: the mean of 4096 ones is 0.0625, and the standard deviation of 4096 twos is 0.5.
# np.mean(x, dtype=np.float32) and x @ x are right. Who looks at released weights or compares outputs this way needs astype(np.float32) first.
# Ends with 0 as long as this is so, with 1 once it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.0 ml_dtypes==0.6.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import ml_dtypes
import numpy as np

ones = np.ones(4096, ml_dtypes.bfloat16)
found = {
    "mean": float(np.mean(ones)),
    "sum": float(np.sum(ones)),
    "std of twos": float(np.std(2 * ones)),
    "mean over rows": float(np.mean(ones.reshape(-1, 2), 0)[0]),
    "mean in float32": float(np.mean(ones, dtype=np.float32)),
    "product": float(ones @ ones),
    "mean in float16": float(np.mean(ones.astype(np.float16))),
}
print("numpy", np.__version__, "ml_dtypes", ml_dtypes.__version__, found)
wrong = {"mean": 0.0625, "sum": 256.0, "std of twos": 0.5, "mean over rows": 0.125}
sys.exit(found != {**wrong, "mean in float32": 1.0, "product": 4096.0, "mean in float16": 1.0})
PYTHON
