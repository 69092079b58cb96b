#!/bin/sh
# jax 0.12.0.1 and 0.10.2, CPU: jax.lax.top_k puts 0.0 before -0.0, in float32 and in bfloat16, and so is no function of the values:
# where the first zero is negative, its first index is not that of jnp.argmax. Expected: equal values in the order of their indices, as
# jax.lax.top_k gives other equal values, and as jnp.argmax, jnp.argsort, jax.lax.sort, jax.lax.approx_max_k, NumPy and PyTorch give zeros.
# Seen, for [-0.0, 0.0, -0.0]: top_k [1 0 2]; all of the others 0, or [0 1 2].
# A router that multiplies scores by a mask of zeros makes such zeros, and then chooses other entries than the same code on PyTorch.
# x + 0.0 before top_k makes all zeros positive.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later (3.11 gets jax 0.10.2); downloads about 150 MB
# into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
version=$(python3 -c 'import sys; print("0.12.0.1" if sys.version_info >= (3, 12) else "0.10.2")')
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==$version"
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

x = np.array([-0.0, 0.0, -0.0], np.float32)
best = [jax.lax.top_k(jnp.asarray(x, dtype), 3)[1].tolist() for dtype in (jnp.float32, jnp.bfloat16)]
others = {
    "equal values": jax.lax.top_k(jnp.ones(3), 3)[1].tolist(),
    "jnp.argsort": jnp.argsort(-jnp.asarray(x)).tolist(),
    "jax.lax.sort_key_val": jax.lax.sort_key_val(jnp.asarray(x), jnp.arange(3))[1].tolist(),
    "jax.lax.approx_max_k": jax.lax.approx_max_k(jnp.asarray(x), 3)[1].tolist(),
    "NumPy": np.argsort(-x, kind="stable").tolist(),
    "zeros made positive": jax.lax.top_k(jnp.asarray(x) + 0.0, 3)[1].tolist(),
}
print("jax", jax.__version__, "top_k", best, "jnp.argmax", int(jnp.argmax(jnp.asarray(x))), others)
as_seen = best == [[1, 0, 2]] * 2 and int(jnp.argmax(jnp.asarray(x))) == 0 and all(o == [0, 1, 2] for o in others.values())
sys.exit(not as_seen)
PYTHON
