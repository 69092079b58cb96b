#!/bin/sh
# keras 3.15.1 (JAX backend), optax 0.2.8, jax 0.10.2 (CPU): keras.losses.Tversky(alpha, beta), of which alpha is
# documented as the weight of false positives and beta as that of false negatives, as in the paper it names (Salehi et
# al., 2017). Expected: beta=0.7 prefers a map that marks too much to one that marks too little, as the paper uses it
# for small lesions, and as optax.losses.dice_loss, whose alpha and beta have the same meaning, does. Seen: the two
# are exchanged: what it calls false positives are the pixels that the truth has and the prediction lacks. A map that
# marks all where half is right has a loss of 0.41 with (0.3, 0.7), which optax gives with (0.7, 0.3), and 0.23 the
# other way; with the weights that the paper chose so that small lesions are marked, pixels that are marked too much
# cost more than those that are missed. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
KERAS_HOME="$folder" KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax
import keras
import numpy as np
import optax

truth = np.zeros((1, 10, 10, 1), "float32")
truth[:, :5] = 1
more = np.ones_like(truth)
less = np.zeros_like(truth)
less[:, :1] = 1


def formula(prediction, alpha, beta):
    hits = (prediction * truth).sum()
    alarms = (prediction * (1 - truth)).sum()
    misses = ((1 - prediction) * truth).sum()
    return 1 - hits / (hits + alpha * alarms + beta * misses)


found = {}
for name, prediction in (("marks all", more), ("marks a fifth", less)):
    for weights in ((0.5, 0.5), (0.3, 0.7), (0.7, 0.3)):
        alpha, beta = weights
        values = (
            keras.losses.Tversky(alpha=alpha, beta=beta)(truth, prediction),
            keras.losses.tversky(truth, prediction, alpha=alpha, beta=beta),
            optax.losses.dice_loss(20 * (2 * prediction - 1), truth, alpha=alpha, beta=beta, smooth=0.0)[0],
            formula(prediction, alpha, beta),
        )
        found[name, weights] = [round(float(v), 3) for v in values]
print("keras", keras.__version__, "optax", optax.__version__, "jax", jax.__version__)
print("(map, (alpha, beta)): [keras Tversky, keras tversky, optax, formula]")
for key, value in found.items():
    print(key, value)
wrong = all(
    np.allclose(found[name, (a, b)][:2], found[name, (b, a)][3], atol=2e-3)
    and np.allclose(found[name, (a, b)][2], found[name, (a, b)][3], atol=2e-3)
    for name, (a, b) in found
)
apart = abs(found["marks all", (0.3, 0.7)][0] - found["marks all", (0.3, 0.7)][3])
sys.exit(not (wrong and apart > 0.1))
PYTHON
