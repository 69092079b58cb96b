#!/bin/sh
# flax 0.12.8, jax 0.10.2 (CPU): nnx.GroupNorm with reduction_axes=-1 for texts (batch, tokens, channels), or (2, 3) for maps:
# groups of channels normalized for each token or row, as the norm of the heads behind retention, xLSTM and other linear
# attentions is. Expected: every group of every token has mean 0 and variance 1, as flax.linen.GroupNorm with the same
# arguments, and a layer norm of (..., groups, size), have it. Seen: the statistics are repeated along the second axis and then
# reshaped, so that channel c is normalized by group c % groups in place of c // size. For groups of means 0, 10, 20 and 30
# outputs are off by 35 to 70 deviations; shapes are right and nothing is NaN. Without reduction_axes, over all positions, it is
# right. No warning.
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
import numpy as np
from flax import nnx

groups, size = 4, 8
means = jnp.repeat(10.0 * jnp.arange(groups), size)
text = jax.random.normal(jax.random.key(0), (2, 6, groups * size)) + means
image = jax.random.normal(jax.random.key(1), (2, 5, 3, groups * size)) + means


def exact(x, axes, columns):
    """Groups normalized over the axes and themselves in float64, by the groups that columns names for each channel."""
    x = np.asarray(x, np.float64)
    y = np.empty_like(x)
    for group in range(groups):
        part = x[..., group * size : (group + 1) * size]
        mean, variance = (f(part, axis=(*axes, -1), keepdims=True) for f in (np.mean, np.var))
        own = columns == group
        y[..., own] = (x[..., own] - mean) / np.sqrt(variance + 1e-6)
    return y


channel = np.arange(groups * size)
found = {}
cases = {"all": (text, (1,), None), "each token": (text, (), (-1,)), "each row": (image, (2,), (2, 3))}
for name, (x, axes, reduced) in cases.items():
    options = {"num_groups": groups, "reduction_axes": reduced, "epsilon": 1e-6, "use_fast_variance": False}
    layer, other = nnx.GroupNorm(groups * size, **options, rngs=nnx.Rngs(0)), nn.GroupNorm(**options)
    results = {"nnx": layer(x), "linen": other.apply(other.init(jax.random.key(0), x), x)}
    for library, y in results.items():
        gaps = [float(np.abs(np.asarray(y) - exact(x, axes, columns)).max()) for columns in (channel // size, channel % groups)]
        found[name, library] = dict(zip(("own group", "group c % groups"), gaps, strict=True))
print("flax", flax.__version__, "jax", jax.__version__, "differences from norms by groups:", found)
right = all(f["own group"] < 1e-3 for (name, library), f in found.items() if library == "linen" or name == "all")
wrong = [found[name, "nnx"] for name in ("each token", "each row")]
sys.exit(not (right and all(f["own group"] > 10 and f["group c % groups"] < 1e-3 for f in wrong)))
PYTHON
