#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.contrib.sam(optimizer, adv_optimizer, sync_period=1), which is allowed ("must be
# >= 1") and stands for no step upwards at all, the run that one compares SAM with. Expected: the steps of the
# optimizer alone, as opaque_mode=True has them. Seen: each step starts from the weights of one step before: it is
# added to w[t - 1] in place of w[t], with the gradient at w[t], because the copy that is stepped from is the one of the
# call before. Two runs take turns, each with the gradients of the other, and each goes half as far: SGD at a rate of
# 0.1 has 0.43 of the way left after 20 steps where it should have 0.12, and where the rate is near the largest that is
# stable it diverges: with 1.9 for a curvature of 1 in place of shrinking by 0.9. sync_period=2 and more are right.
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


def train(tx, steps, opaque=False):
    """The weight after each step down 0.5 w^2 from 1."""
    weight = jnp.ones(1)
    state, rows = tx.init(weight), []
    for _ in range(steps):
        more = {"grad_fn": lambda w, _: w} if opaque else {}
        updates, state = tx.update(weight, state, weight, **more)
        weight = optax.apply_updates(weight, updates)
        rows.append(float(weight[0]))
    return np.array(rows)


def late(rate, steps):
    """Steps that are added to the weights of one step before, but for the first."""
    weights = [1.0, 1.0]
    for _ in range(steps):
        weights.append(weights[-2] - rate * weights[-1])
    return np.array(weights[2:])


upwards = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
found, right = {}, True
for rate in 0.1, 1.9:
    sgd = optax.sgd(rate)
    alone = train(sgd, 20)
    one = train(optax.contrib.sam(sgd, upwards, sync_period=1), 20)
    opaque = train(optax.contrib.sam(sgd, upwards, sync_period=1, opaque_mode=True), 20, opaque=True)
    found[rate] = {name: float(x[-1]) for name, x in {"sgd": alone, "sync_period=1": one, "opaque": opaque}.items()}
    right &= np.allclose(opaque, alone, atol=1e-5) and np.allclose(one, late(rate, 20), rtol=1e-4)
two = train(optax.contrib.sam(optax.sgd(0.1), upwards, sync_period=2), 40)[1::2]
opaque = train(optax.contrib.sam(optax.sgd(0.1), upwards, sync_period=2, opaque_mode=True), 20, opaque=True)
right &= np.allclose(two, opaque, atol=1e-5)
print("optax", optax.__version__, "jax", jax.__version__, "the weight after 20 steps from 1 to 0, by rate:", found)
gone = abs(found[1.9]["sync_period=1"]) > 100 > 1 > abs(found[1.9]["sgd"])
sys.exit(not (right and gone and found[0.1]["sync_period=1"] > 2 * found[0.1]["sgd"]))
PYTHON
