#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.adan, whose b2=0.92 is documented as the decay rate of the mean of differences of
# gradients. Expected: these differences, in the step and in the second moment, weighed by 0.92, as in the paper
# (arXiv:2208.06677), which has 1 - beta_2 for it and beta_2 = 0.08 for one minus this decay, and as in its authors'
# code and timm. Seen: the mean decays by 0.92, and differences are weighed by 1 - b2 = 0.08: the correction that makes
# the momentum Nesterov's is less than a tenth of what it should be, and steps are off by 0.7 of their mean length. No
# b2 gives the paper's steps but 0.5, where both weights are equal and steps agree to rounding. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax.numpy as jnp
import numpy as np
import optax

gradients = np.random.default_rng(0).normal(0.2, 1.0, (60, 16))


def equations(betas, weight):
    """Steps in float64, where weight is that of the differences."""
    mean, change, square, before, found = 0.0, 0.0, 0.0, gradients[0], []
    for count, gradient in enumerate(gradients, 1):
        difference, before = gradient - before, gradient
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        change = betas[1] * change + (1 - betas[1]) * difference
        square = betas[2] * square + (1 - betas[2]) * (gradient + weight * difference) ** 2
        step = mean / (1 - betas[0] ** count) + weight * change / (1 - betas[1] ** count)
        found.append(-step / (np.sqrt(square / (1 - betas[2] ** count)) + 1e-8))
    return np.array(found)


found = {}
for b2 in (0.92, 0.5):
    tx = optax.adan(1.0, b2=b2, eps=1e-8, eps_root=0.0)
    weights = jnp.zeros(16)
    state, made = tx.init(weights), []
    for gradient in gradients:
        updates, state = tx.update(jnp.asarray(gradient, jnp.float32), state, weights)
        made.append(np.asarray(updates, np.float64))
    betas = (0.98, b2, 0.99)
    want = equations(betas, b2)
    gaps = [np.abs(np.array(made) - other).mean() / np.abs(want).mean() for other in (want, equations(betas, 1 - b2))]
    found[b2] = [float(f"{gap:.1e}") for gap in gaps]
print("optax", optax.__version__, "by b2: mean difference of steps over their mean length,")
print("from the paper's and from those with differences weighed by 1 - b2:", found)
sys.exit(not (found[0.92][0] > 0.2 and found[0.92][1] < 1e-4 and max(found[0.5]) < 1e-4))
PYTHON
