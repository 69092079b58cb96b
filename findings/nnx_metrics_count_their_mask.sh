#!/bin/sh
# flax 0.12.8, jax 0.10.2 (CPU): nnx.metrics.Average and nnx.metrics.Accuracy with a mask, which by their documentation has a
# shape that can be broadcast to that of the values: (batch, 1) for examples that fill up the last batch, or (tokens,) for a
# padding that all texts share. Expected: the mean over what the mask leaves, as jnp.mean(where=mask) gives it. Seen: the sum is
# taken over the broadcast mask and the count over the mask as it was given, so that the mean is as many times too large as the
# mask was repeated: an accuracy of 6.0 where all of 6 tokens are right. A masked NaN is counted too, as it is multiplied by 0.
# With jnp.broadcast_to(mask, values.shape) the count is right.
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

values = jax.random.uniform(jax.random.key(0), (4, 6))
labels = jnp.ones((4, 6), jnp.int32)
logits = jax.nn.one_hot(labels, 3)
examples = jnp.array([[1], [1], [1], [0]])
masks = {"whole": jnp.broadcast_to(examples, (4, 6)), "examples": examples, "tokens": jnp.array([1, 1, 1, 1, 0, 0])}
found = {}
for name, mask in masks.items():
    average, accuracy = nnx.metrics.Average(), nnx.metrics.Accuracy()
    average.update(values=values, mask=mask)
    accuracy.update(logits=logits, labels=labels, mask=mask)
    exact = jnp.mean(values, where=jnp.broadcast_to(mask, values.shape) > 0)
    found[name] = {"average": float(average.compute()), "exact": float(exact), "accuracy, 1 is right": float(accuracy.compute())}
average = nnx.metrics.Average()
average.update(values=values.at[0, 0].set(jnp.nan), mask=jnp.ones((4, 6)).at[0, 0].set(0))
found["a masked NaN"] = float(average.compute())
print("flax", flax.__version__, "jax", jax.__version__, "by mask:", found)
ratios = {name: f["average"] / f["exact"] for name, f in found.items() if isinstance(f, dict)}
right = abs(ratios["whole"] - 1) < 1e-5 and found["whole"]["accuracy, 1 is right"] == 1
wrong = abs(ratios["examples"] - 6) < 1e-4 and abs(ratios["tokens"] - 4) < 1e-4 and found["examples"]["accuracy, 1 is right"] == 6
sys.exit(not (right and wrong and found["a masked NaN"] != found["a masked NaN"]))
PYTHON
