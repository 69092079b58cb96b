#!/bin/sh
# keras 3.15.1 with JAX, optax 0.2.8, jax 0.10.2 (CPU): keras.optimizers.Lamb(weight_decay=0.01). Expected: the decay is
# a part of the step whose length is set to the norm of the weights, as in the paper that it names (arXiv:1904.00962,
# algorithm 2), so that the layer-wise ratio scales it as it scales the gradient, and as optax.lamb has it. Seen:
# weights are decayed apart from it, by rate * weight_decay whatever the ratio is: for a new kernel of deviation 0.02,
# whose ratio is 0.02, it is 50 times as much against the gradient as in the paper, for weights of deviation 4 a
# quarter. Layers are no longer treated by their own scale, which the method is for. Without decay the two agree to
# rounding.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
import jax.numpy as jnp
import keras
import numpy as np
import optax

rate, random = 0.01, np.random.default_rng(0)
start = np.where(random.permutation(256) < 128, 1.0, -1.0).astype("float32")
gradient = np.roll(np.where(np.arange(256) % 2, 1.0, -1.0), 1).astype("float32")
gradient -= start * (gradient @ start) / 256  # no part along the weights
gradient /= np.abs(gradient).max()


def of_keras(weights, decay):
    weight = keras.Variable(weights)
    optimizer = keras.optimizers.Lamb(rate, epsilon=1e-6, weight_decay=decay or None, beta_1=0.0, beta_2=0.0)
    optimizer.build([weight])
    optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
    return np.array(weight.value, np.float64) - weights


def of_optax(weights, decay):
    tx = optax.lamb(rate, b1=0.0, b2=0.0, eps=1e-6, weight_decay=decay)
    weight = jnp.asarray(weights)
    return np.array(tx.update(jnp.asarray(gradient), tx.init(weight), weight)[0], np.float64)


found = {}
for scale in (0.02, 1.0, 4.0):
    weights = scale * start
    steps = {decay: [make(weights, decay) for make in (of_keras, of_optax)] for decay in (0.0, 0.01)}
    alike = np.abs(steps[0.0][0] - steps[0.0][1]).max() / np.abs(steps[0.0][1]).max()
    # what a decay of 0.01 takes from the weights, over rate * 0.01
    parts = [
        float((a - b) @ weights / (weights @ weights) / (rate * 0.01)) for a, b in zip(*steps.values(), strict=True)
    ]
    found[scale] = [*(round(part, 3) for part in parts), float(f"{alike:.1e}")]
print("keras", keras.__version__, "optax", optax.__version__)
print("by the weights' deviation: decay over rate * weight_decay in Keras, in optax, difference without decay:", found)
right = all(abs(values[1] / scale - 1) < 0.1 and values[2] < 1e-4 for scale, values in found.items())
sys.exit(not (right and all(abs(values[0] - 1) < 0.05 for values in found.values())))
PYTHON
