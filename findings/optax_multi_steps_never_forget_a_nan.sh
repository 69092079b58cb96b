#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.MultiSteps around a transformation that takes care of gradients that are not finite:
# optax.apply_if_finite or optax.zero_nans. Expected: one microbatch with a NaN costs the one update that it is part of. Seen:
# the sum is reset by multiplying it by 0, and 0 times NaN is NaN: it stays in the sum for good. With zero_nans those weights
# are never updated again, without a notice; with apply_if_finite, which lets NaN pass after so many in a row, all of them
# become NaN. Infinity, as from float16, does the same. Without MultiSteps both do what they should, and so does
# MultiSteps(should_skip_update_fn=optax.skip_not_finite).
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import optax


def train(tx, bad):
    """The weight after each of 24 gradients of 1, the fifth of which is bad, with a learning rate of 1."""
    weight = jnp.zeros(())
    state = tx.init(weight)
    weights = []
    update = jax.jit(tx.update)
    for step in range(24):
        updates, state = update(jnp.float32(bad if step == 4 else 1), state, weight)
        weight = optax.apply_updates(weight, updates)
        weights.append(float(weight))
    return weights


sgd = optax.sgd(1.0)
ways = {"apply_if_finite": optax.apply_if_finite(sgd, 5), "zero_nans": optax.chain(optax.zero_nans(), sgd)}
found = {}
for bad in ("nan", "inf"):
    for name, tx in ways.items():
        if (name, bad) != ("zero_nans", "inf"):
            weights = train(optax.MultiSteps(tx, 2), float(bad))
            found[name, bad] = [train(tx, float(bad))[-1], *weights[::4], weights[-1]]
    skipped = optax.MultiSteps(sgd, 2, should_skip_update_fn=optax.skip_not_finite)
    found["skip_not_finite", bad] = [train(skipped, float(bad))[-1]]
print("optax", optax.__version__, "jax", jax.__version__)
print("last weight without MultiSteps, weights with 2 steps each, by inner part and bad gradient:", found)
right = all(f[0] == (-23 if name in ways else -11) for (name, _), f in found.items())
ends = [found["apply_if_finite", bad][-1] for bad in ("nan", "inf")]
lost = found["zero_nans", "nan"][-1] == -2 and all(end != end for end in ends)
sys.exit(not (right and lost))
PYTHON
