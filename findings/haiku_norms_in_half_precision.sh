#!/bin/sh
# dm-haiku 0.0.17, flax 0.12.8, jax 0.10.2 (CPU): norms of activations in half precision. Expected: statistics in float32, as in Flax's norms and PyTorch's,
# so that the outputs are right but for one rounding. Seen: Haiku computes them in the activations' type. BatchNorm of bfloat16 takes the mean of squares
# minus the square of the mean: for channels with a mean of 10 and a deviation of 1 the variance is 0 or less for some, and outputs are 200 times too large or
# NaN. RMSNorm of float16 is 0 for numbers of 300, whose squares are infinite. LayerNorm, which subtracts the mean first, is right to 4 %. Flax's are right to
# 1 % in all of these cases. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dm-haiku==0.0.17 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import flax
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

found = {}


def haiku(function, x):
    transformed = hk.transform_with_state(function)
    parameters, state = transformed.init(jax.random.key(0), x)
    return transformed.apply(parameters, state, None, x)[0]


def error(y, x, axis, centered=True):
    x = x.astype(jnp.float32)
    x = x - x.mean(axis, keepdims=True) if centered else x
    exact = x / jnp.sqrt(jnp.mean(x**2, axis, keepdims=True))
    gap = jnp.abs(y.astype(jnp.float32) - exact).max() / jnp.abs(exact).max()
    return round(float(gap), 3)


noise = jax.random.normal(jax.random.key(1), (512, 64))
for mean in (0, 10, 50):
    x = (noise + mean).astype(jnp.bfloat16)
    found["BatchNorm, mean", mean] = (
        error(haiku(lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True), x), x, 0),
        error(nnx.BatchNorm(64, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)(x), x, 0),
    )
    found["LayerNorm, mean", mean] = (
        error(haiku(lambda x: hk.LayerNorm(-1, True, True)(x), x), x, 1), error(nnx.LayerNorm(64, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)(x), x, 1),
    )
for scale in (1, 300):
    x = (scale * noise).astype(jnp.float16)
    found["RMSNorm, deviation", scale] = (
        error(haiku(lambda x: hk.RMSNorm(-1)(x), x), x, 1, False), error(nnx.RMSNorm(64, rngs=nnx.Rngs(0), dtype=jnp.float16)(x), x, 1, False),
    )
print("dm-haiku", importlib.metadata.version("dm-haiku"), "flax", flax.__version__, "jax", jax.__version__, "relative errors of (Haiku, Flax):", found)
wrong = min(found["BatchNorm, mean", mean][0] for mean in (10, 50)) > 1 and found["RMSNorm, deviation", 300][0] == 1
sys.exit(not (wrong and found["BatchNorm, mean", 0][0] < 0.02 and max(flax for _, flax in found.values()) < 0.01))
PYTHON
