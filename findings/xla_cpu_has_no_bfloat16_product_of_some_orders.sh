#!/bin/sh
# jax 0.10.2 and 0.12.0.1 (XLA for CPUs): jnp.einsum of bfloat16 with preferred_element_type=float32, for a matrix at each position:
# (batch, length, 64) by (length, 64, 32). Expected: the order of the result's axes only moves the result; "bld,ldh->lbh" runs, and
# so does "bld,ldh->blh" of one row, or without the preferred type. Seen: with two rows "bld,ldh->blh" fails when it runs, not when it
# is compiled: UNIMPLEMENTED, an element type that a product of the CPU does not support (BF16 x BF16 = F32). A model that was tried
# with a batch of one stops with the first batch of two. The same values in float32 or float16 run.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np


def outcome(equation, rows, dtype="bfloat16", preferred="float32"):
    """The error of a product against float64, or the kind of failure."""
    rng = np.random.default_rng(0)
    x, matrices = rng.normal(size=(rows, 8, 64)), rng.normal(size=(8, 64, 32))
    x, matrices = (jnp.asarray(a, dtype) for a in (x, matrices))
    exact = np.einsum(equation, np.asarray(x, np.float64), np.asarray(matrices, np.float64))
    product = jax.jit(lambda a, b: jnp.einsum(equation, a, b, preferred_element_type=preferred))
    compiled = product.lower(x, matrices).compile()
    try:
        found = np.asarray(compiled(x, matrices), np.float64)
    except jax.errors.JaxRuntimeError as error:
        return str(error).partition(":")[0]
    return "runs" if np.abs(found - exact).max() < 0.2 else "wrong"


found = {
    "blh, two rows": outcome("bld,ldh->blh", 2),
    "blh, one row": outcome("bld,ldh->blh", 1),
    "lbh, two rows": outcome("bld,ldh->lbh", 2),
    "blh, two rows, no preferred type": outcome("bld,ldh->blh", 2, preferred=None),
    "blh, two rows, float16": outcome("bld,ldh->blh", 2, dtype="float16"),
    "blh, two rows, float32": outcome("bld,ldh->blh", 2, dtype="float32"),
}
print("jax", jax.__version__, found)
runs = {name for name, how in found.items() if how == "runs"}
sys.exit(0 if found.pop("blh, two rows") == "UNIMPLEMENTED" and runs == set(found) else 1)
PYTHON
