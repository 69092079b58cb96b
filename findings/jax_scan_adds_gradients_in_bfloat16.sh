#!/bin/sh
# jax 0.10.2 (CPU): the gradient of a weight in float32 that is cast to bfloat16 for use in every step of lax.scan: tokens of a recurrence, chunks of a text,
# microbatches. Expected: a gradient in float32, summed over the steps in float32, wherever the cast stands, as the values are the same. Seen: with the cast
# before the scan the steps' gradients are added in bfloat16, where a sum of ones stops at 256: 256 for 1000 steps and for 4000. With the cast in the step
# they are added in float32, and are 1000 and 4000. The same product of all rows at once is right both ways.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp


def loss(weight, x, cast_first, scanned):
    def step(state, row):
        return state, row @ (used if cast_first else weight.astype(jnp.bfloat16))

    used = weight.astype(jnp.bfloat16)
    rows = jax.lax.scan(step, 0, x)[1] if scanned else jax.vmap(lambda row: step(0, row)[1])(x)
    return rows.astype(jnp.float32).sum()


found = {}
weight = jnp.ones((4, 4))
for steps in (1000, 4000):
    x = jnp.ones((steps, 1, 4), jnp.bfloat16)
    random = 1 + jax.random.normal(jax.random.key(0), (steps, 1, 4)).astype(jnp.bfloat16)
    for name, options in {"before": (True, True), "in the step": (False, True), "before, all at once": (True, False)}.items():
        slope = jax.jit(jax.grad(loss), static_argnums=(2, 3))
        exact = random.astype(jnp.float32).sum((0, 1))
        error = jnp.abs(slope(weight, random, *options)[:, 0] - exact).max() / exact.max()
        found[name, steps] = float(slope(weight, x, *options)[0, 0]), round(float(error), 4)
print("jax", jax.__version__, "gradients, and errors of random ones, by where the cast stands and the steps:", found)
wrong = all(found["before", steps][0] == 256 and found["before", steps][1] > 0.1 for steps in (1000, 4000))
right = all(found[name, steps][0] == steps and found[name, steps][1] < 0.01 for name in ("in the step", "before, all at once") for steps in (1000, 4000))
sys.exit(not (wrong and right))
PYTHON
