#!/bin/sh
# jax 0.10.2 (XLA for CPUs): the gradient of twelve layers, each under jax.checkpoint. Expected: temporary memory falls to about what
# one layer keeps, whether the layers are called one after another or by lax.scan. Seen: it falls in the scan alone (108 to 16 MiB).
# One after another the peak is the same to the byte (62 MiB), and so is the number of products: the barrier that JAX puts before a
# recomputation is gone when the compiler merges equal operations. jax 0.12.0.1 lowers both (the loop to 18 MiB, with 83 products for 71).
# Ends with 0 as long as this is so, with 1 once it changes.
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

depth, rows, width = 12, 1024, 128
keys = jax.random.split(jax.random.key(0), 2)
weights = {
    "in": 0.05 * jax.random.normal(keys[0], (depth, width, 8 * width)),
    "out": 0.05 * jax.random.normal(keys[1], (depth, 8 * width, width)),
}


def layer(weights, x):
    return x + jnp.tanh(x @ weights["in"]) @ weights["out"]


def loss(weights, x, scan, again):
    call = jax.checkpoint(layer) if again else layer
    if scan:
        x, _ = jax.lax.scan(lambda x, weights: (call(weights, x), None), x, weights)
    else:
        for number in range(depth):
            x = call(jax.tree.map(lambda leaf: leaf[number], weights), x)
    return jnp.mean(jnp.square(x))


peak, products = {}, {}
for scan in (False, True):
    for again in (False, True):
        gradient = jax.jit(jax.grad(loss), static_argnums=(2, 3))
        program = gradient.lower(weights, jnp.ones((rows, width)), scan, again).compile()
        peak[scan, again] = program.memory_analysis().temp_size_in_bytes
        products[scan, again] = program.as_text().count(" dot(")
        print("scan" if scan else "loop", "checkpoint" if again else "plain     ", peak[scan, again] >> 20, "MiB,", products[scan, again], "products")
print("jax", jax.__version__)
same = peak[False, True] == peak[False, False] and products[False, True] == products[False, False]
sys.exit(not (same and peak[True, True] < 0.5 * peak[True, False]))
PYTHON
