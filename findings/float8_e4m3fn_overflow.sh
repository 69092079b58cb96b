#!/bin/sh
# torch 2.13.0 (CPU), ml_dtypes 0.6.0, jax 0.10.2: casts to float8 of what is too large for it. float8_e4m3fn has no infinity.
# Expected: one rule. ml_dtypes and JAX make NaN of anything above 464, infinity included. Seen: PyTorch makes 448 of all of it, of infinity
# too, so that an overflow before the cast can't be seen after it; yet its float8_e5m2 overflows to infinity and its float8_e4m3fnuz to NaN,
# as those of the others do. Weights or activations quantized without a scale by the one are clipped, by the other are NaN.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later; downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy jax==0.10.2 jaxlib==0.10.2 ml_dtypes==0.6.0
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch

x = np.array([448, 464, 466, 1e6, np.inf], np.float32)


def casts(kind):
    return {
        "ml_dtypes": x.astype(getattr(ml_dtypes, kind)).astype(np.float32).tolist(),
        "jax": jax.jit(lambda x: x.astype(getattr(jnp, kind)).astype(jnp.float32))(x).tolist(),
        "torch": torch.tensor(x).to(getattr(torch, kind)).float().tolist(),
    }


found = {kind: casts(kind) for kind in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz")}
print("torch", torch.__version__, "ml_dtypes", ml_dtypes.__version__, "jax", jax.__version__, "of", x.tolist())
for kind, casted in found.items():
    print(kind, casted)
nan, inf = float("nan"), float("inf")
x = np.array([1e6, inf], np.float32)
large = {kind: {library: str(values) for library, values in casts(kind).items()} for kind in found}
same = all(len(set(large[kind].values())) == 1 for kind in ("float8_e5m2", "float8_e4m3fnuz"))
apart = large["float8_e4m3fn"] == {"ml_dtypes": str([nan, nan]), "jax": str([nan, nan]), "torch": str([448.0, 448.0])}
sys.exit(not (same and apart and large["float8_e5m2"]["torch"] == str([inf, inf])))
PYTHON
