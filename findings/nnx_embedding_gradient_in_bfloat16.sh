#!/bin/sh
# flax 0.12.8, jax 0.10.2 (CPU): the gradient of nnx.Embed with parameters in float32 and dtype=jnp.bfloat16, the setting of mixed precision. Expected: a
# gradient in float32, as the parameters are, in which a token that occurs a thousand times has the sum of a thousand. Seen: the rows are added in bfloat16
# before they are cast, where 256 + 1 is 256: the gradient of ones is 256 for 1000 tokens as for 20,000, and of 4000 random numbers of mean 1 a quarter of
# what it should be. jax.ops.segment_sum, whose gradient sums are these, stops at 256 as well. nnx.Linear of one-hot vectors sums in float32. Looked up in
# float32 (dtype=jnp.float32) and cast after, all is right.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import flax
import jax
import jax.numpy as jnp
from flax import nnx


def gradient(dtype, cast, count, slopes):
    embed = nnx.Embed(8, 4, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    tokens = jnp.zeros(count, jnp.int32)

    def loss(embed):
        return jnp.sum(embed(tokens).astype(cast).astype(jnp.float32) * slopes)

    return jax.tree.leaves(nnx.grad(loss)(embed))[0][0]


found = {}
for name, dtype in (("bfloat16", jnp.bfloat16), ("float32, cast after", jnp.float32)):
    for count in (200, 1000, 20_000):
        found[name, count] = float(gradient(dtype, jnp.bfloat16, count, 1.0)[0])
    slopes = 1 + jax.random.normal(jax.random.key(0), (4000, 4)).astype(jnp.bfloat16).astype(jnp.float32)
    exact = slopes.sum(0)
    found[name, "random"] = round(float(jnp.abs(gradient(dtype, jnp.bfloat16, 4000, slopes) - exact).max() / exact.max()), 4)
linear = nnx.Linear(8, 4, dtype=jnp.bfloat16, param_dtype=jnp.float32, use_bias=False, rngs=nnx.Rngs(0))
one_hot = jax.nn.one_hot(jnp.zeros(1000, jnp.int32), 8)
found["one-hot vectors", 1000] = float(jax.tree.leaves(nnx.grad(lambda f: f(one_hot).astype(jnp.float32).sum())(linear))[0][0, 0])
found["segment_sum", 1000] = float(jax.ops.segment_sum(jnp.ones(1000, jnp.bfloat16), jnp.zeros(1000, jnp.int32), 1)[0])
print("flax", flax.__version__, "jax", jax.__version__, "gradients of a token that occurs so often, and the error of random ones:", found)
wrong = found["bfloat16", 1000] == found["bfloat16", 20_000] == found["segment_sum", 1000] == 256 and found["bfloat16", "random"] > 0.2
right = all(found["float32, cast after", count] == count for count in (200, 1000, 20_000)) and found["one-hot vectors", 1000] == 1000
sys.exit(not (wrong and right and found["float32, cast after", "random"] < 0.01))
PYTHON
