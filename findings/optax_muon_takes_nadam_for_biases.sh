#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.contrib.muon for biases, norms and other weights that are no matrices, which by
# its documentation are passed through an AdamW optimizer, as in the code it refers to and in keras.optimizers.Muon.
# Expected: the steps of optax.adamw(b1=0.9, b2=0.999, weight_decay=0). Seen: nesterov=True, the default and
# documented as Muon's momentum, is handed to AdamW too: steps are those of optax.nadamw to rounding, which for
# gradients of noise are 1.2 times as long as AdamW's and differ by 0.43 of their length, and nesterov=False, which is
# meant for the matrices, changes those of all biases. The two can't be set apart, nor can the epsilon, but with
# optax.partition by hand. No warning.
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

gradients = {
    "weight": jax.random.normal(jax.random.key(0), (200, 8, 16)),
    "bias": jax.random.normal(jax.random.key(1), (200, 16)),
}
start = jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), gradients)


def biases(tx):
    """All steps of the bias at a learning rate of 1."""

    def step(state, gradient):
        updates, state = tx.update(gradient, state, start)
        return state, updates["bias"]

    return np.asarray(jax.lax.scan(step, tx.init(start), gradients)[1], np.float64)


adam = {"b1": 0.9, "b2": 0.999, "weight_decay": 0.0}
steps = {
    "muon": biases(optax.contrib.muon(1.0, adam_b1=0.9, adam_b2=0.999)),
    "muon, nesterov=False": biases(optax.contrib.muon(1.0, adam_b1=0.9, adam_b2=0.999, nesterov=False)),
    "adamw": biases(optax.adamw(1.0, **adam)),
    "nadamw": biases(optax.nadamw(1.0, **adam)),
}
size = lambda x: float(np.sqrt(np.mean(x**2)))
found = {}
for name in ("muon", "muon, nesterov=False"):
    for other in ("adamw", "nadamw"):
        gap = size(steps[name] - steps[other]) / size(steps[other])
        found[name, other] = round(size(steps[name]) / size(steps[other]), 3), round(gap, 3)
print("optax", optax.__version__, "jax", jax.__version__)
print("steps of a bias, by those of another: (lengths, difference)")
for key, value in found.items():
    print(key, value)
equal = found["muon", "nadamw"] == (1, 0) and found["muon, nesterov=False", "adamw"] == (1, 0)
ratio, gap = found["muon", "adamw"]
sys.exit(not (equal and ratio > 1.15 and gap > 0.3))
PYTHON
