#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.tree.norm, optax.global_norm and clip_by_global_norm of gradients in bfloat16 or float16.
# Expected: squares added in float32, as torch.nn.utils.clip_grad_norm_ has it and as jnp.sum does within an array. Seen: the sums of the arrays
# are added in the arrays' own type, so that small ones are lost and large ones overflow. 1000 arrays of one 1 each, bfloat16: a norm of 16 in
# place of 31.6, and gradients clipped to 1 have a norm of 1.98. float16: 10,000 fours, of norm 400, have a norm of infinity, and the gradients
# clipped by it are all 0: nothing is learned, and nothing is NaN. With the gradients cast to float32 first both are right.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import optax


def wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def clipped(gradients):
    clip = optax.clip_by_global_norm(1.0)
    return float(optax.tree.norm(wide(clip.update(gradients, clip.init(gradients))[0])))


cases = {
    "1000 arrays, bfloat16": {str(i): jnp.ones(1, jnp.bfloat16) for i in range(1000)},
    "one array, float16": {"w": jnp.full(10_000, 4.0, jnp.float16)},
}
found = {}
for name, gradients in cases.items():
    found[name] = float(optax.tree.norm(gradients)), clipped(gradients), float(optax.tree.norm(wide(gradients))), clipped(wide(gradients))
print("optax", optax.__version__, "jax", jax.__version__, "norm, norm after clipping to 1, and both of the gradients in float32:", found)
lost, overflown = found.values()
right = all(abs(f[3] - 1) < 1e-3 for f in (lost, overflown)) and abs(lost[2] - 31.62) < 0.1 and abs(overflown[2] - 400) < 1
sys.exit(not (right and lost[0] == 16 and lost[1] > 1.9 and overflown[:2] == (float("inf"), 0.0)))
PYTHON
