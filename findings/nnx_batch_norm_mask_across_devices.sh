#!/bin/sh
# flax 0.12.8, jax 0.10.2 (CPU): nnx.BatchNorm(axis_name=...) called with a mask, for texts or sets of different lengths in
# shards. Expected: the statistics over all that the mask leaves, whatever the shards, as without shards. Seen: each shard's
# masked mean counts the same: with 12 valid rows in one shard and 2 in the other, whose means are 4 apart, the mean is off by
# 1.6 and outputs by 1.4 deviations, and a shard with none (the rest of the last batch) makes all outputs and the running
# statistics of all shards NaN, in which they stay. With as many valid rows in each shard, and in one shard, all is right.
# flax.linen.BatchNorm does the same. No warning.
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
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

rows = 16
x = jax.random.normal(jax.random.key(0), (2, rows, 3)) + jnp.array([0.0, 4.0])[:, None, None]


def normalized(x, mask, axis_name=None):
    """Outputs and running mean of nnx and linen, of one shard or of shards along the axis axis_name."""
    graph, state = nnx.split(nnx.BatchNorm(3, momentum=0.0, axis_name=axis_name, rngs=nnx.Rngs(0)))
    other = nn.BatchNorm(use_running_average=False, momentum=0.0, axis_name=axis_name)
    variables = nn.BatchNorm(use_running_average=True).init(jax.random.key(0), x[..., :1, :])

    def call(x, mask, state):
        layer = nnx.merge(graph, state)
        y = layer(x, mask=mask)
        z, updated = other.apply(variables, x, mask=mask, mutable=["batch_stats"])
        return y, z, layer.mean[...], updated["batch_stats"]["mean"]

    if axis_name is None:
        return call(x, mask, state)
    return jax.vmap(call, axis_name=axis_name, in_axes=(0, 0, None))(x, mask, state)


found = {}
for counts in ((8, 8), (12, 2), (16, 0)):
    mask = (jnp.arange(rows) < jnp.array(counts)[:, None])[..., None]
    exact = jnp.mean(x, (0, 1), where=mask)
    whole = normalized(x.reshape(2 * rows, 3), mask.reshape(2 * rows, 1))
    shards = normalized(x, mask, "shards")
    gaps = [float(jnp.abs(shards[i].reshape(2 * rows, 3) - whole[i]).max()) for i in range(2)]
    both = {"whole": whole, "shards": shards}
    means = {name: [float(jnp.abs(result[i] - exact).max()) for i in (2, 3)] for name, result in both.items()}
    found[counts] = {"outputs": gaps, "means": means}
print("flax", flax.__version__, "jax", jax.__version__, "errors (nnx, linen) by valid rows in each shard:", found)
right = max(found[8, 8]["outputs"]) < 1e-4 and max(max(f["means"]["whole"]) for f in found.values()) < 1e-4
wrong = min(found[12, 2]["means"]["shards"]) > 1 and all(e != e for e in found[16, 0]["means"]["shards"])
sys.exit(not (right and wrong))
PYTHON
