#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.contrib.cocob(learning_rate), "optional learning rate to e.g. inject some
# scheduler". Expected: it multiplies the steps, as it does in optax.contrib.dog and dowg, which are chosen for the same
# reason: 0.1 makes the first step a tenth as long, and a cosine makes the last ones small. Seen: it multiplies the
# gradients, before a rule that divides by their size, so that a constant rate has no effect: 0.01, 1 and 100 have the
# same weights after 200 steps to rounding. A schedule weighs gradients against each other: with one that rises from
# 0.01 to 1 the first step is as long as with 1, where dowg's is a hundredth, and with one that falls, late gradients
# count for less than early ones. Only a rate of 0 does what it says, as nothing moves then. No warning.
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
import numpy as np
import optax

generator = np.random.default_rng(0)
start = jnp.asarray(generator.normal(size=8), jnp.float32)
goal = jnp.asarray(generator.normal(size=8), jnp.float32)
noise = jnp.asarray(generator.normal(size=(200, 8)) * 0.3, jnp.float32)


def train(tx):
    """The weights after each of 200 steps towards a goal, by noisy gradients."""

    def step(carry, noise):
        weights, state = carry
        updates, state = tx.update(weights - goal + noise, state, weights)
        weights = optax.apply_updates(weights, updates)
        return (weights, state), weights

    return np.asarray(jax.lax.scan(step, (start, tx.init(start)), noise)[1], np.float64)


make = {"cocob": optax.contrib.cocob, "dowg": optax.contrib.dowg}
rates = {"0.01": 0.01, "1": 1.0, "100": 100.0, "0.01, then 1": optax.linear_schedule(0.01, 1.0, 100)}
moved, apart = {}, {}
for name, function in make.items():
    whole = train(function(1.0))
    for label, rate in rates.items():
        if name == "dowg" and label == "100":
            continue  # which leaves the range of float32
        weights = train(function(rate))
        first = np.abs(weights[0] - np.asarray(start)).mean() / np.abs(whole[0] - np.asarray(start)).mean()
        moved[name, label] = round(float(first), 3)
        apart[name, label] = round(float(np.abs(weights - whole).max()), 5)
print("optax", optax.__version__, "jax", jax.__version__)
print("length of the first step, by that with a rate of 1:", moved)
print("largest difference of weights in 200 steps from those with a rate of 1:", apart)
same = all(moved["cocob", label] == 1 for label in rates) and max(apart["cocob", x] for x in ("0.01", "1", "100")) < 1e-3
sys.exit(not (same and moved["dowg", "0.01"] == 0.01 and apart["dowg", "0.01"] > 0.1 < apart["cocob", "0.01, then 1"]))
PYTHON
