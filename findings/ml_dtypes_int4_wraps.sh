#!/bin/sh
# ml_dtypes 0.6.0, NumPy 2.4.0, jax 0.10.2 (CPU): float32 to int4, as when weights are quantized. Expected: one result, on the host or in a
# program. Seen: JAX clips to -8 and 7; NumPy with ml_dtypes, which holds JAX's int4 arrays on the host, keeps the lowest four bits: 8.0 becomes
# -8, 100.0 becomes 4. Both are silent. The largest positive weight, 8 of 8 with a symmetric scale of max / 8, changes its sign in the one
# and not in the other. np.clip first serves.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later; downloads about 100 MB into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.0 jax==0.10.2 jaxlib==0.10.2 ml_dtypes==0.6.0
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

x = np.array([7.0, 8.0, 9.0, -9.0, 100.0], np.float32)
host = x.astype(ml_dtypes.int4).astype(int).tolist()
program = jax.jit(lambda x: x.astype(jnp.int4).astype(jnp.int32))(x).tolist()
at_once = jnp.asarray(x).astype(jnp.int4).astype(jnp.int32).tolist()
print("ml_dtypes", ml_dtypes.__version__, "jax", jax.__version__, "of", x.tolist(), "on the host", host, "in a program", program, at_once)
sys.exit(not (host == [7, -8, -7, 7, 4] and program == at_once == [7, 7, 7, -8, 7]))
PYTHON
