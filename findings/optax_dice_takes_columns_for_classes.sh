#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.losses.dice_loss of binary maps (batch, height, width) without an axis of
# classes, which its documentation allows for both arguments, logits and targets. Expected: the loss of the same maps
# with a last axis of 1, and that of optax.losses.binary_dice_loss: a sigmoid of each pixel, one loss for each map.
# Seen: an axis is added only to an argument that has one less than the other; with none in both, the columns of the
# map are taken for classes: a softmax over the width, and a Dice loss of each column. A prediction that is right in
# each pixel, with logits of 20 and -20, has a loss of 0.3 in place of 0, and descent goes elsewhere: trained to the
# end, a map is wrong in 11 % of its pixels, where the others are right in all. (batch, pixels) is taken the same way.
# Shapes of results are right, and nothing warns.
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

targets = jnp.asarray(np.random.default_rng(0).random((2, 8, 8)) < 0.3, jnp.float32)
dice = optax.losses.dice_loss


def fitted(loss):
    """The share of right pixels after descent from 0."""
    tx = optax.adam(0.1)

    def step(carry, _):
        logits, state = carry
        updates, state = tx.update(jax.grad(lambda x: loss(x).sum())(logits), state)
        return (logits + updates, state), None

    start = jnp.zeros_like(targets)
    (logits, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, 2000)
    return float(jnp.mean((logits > 0) == (targets > 0)))


losses = {
    "without": lambda x: dice(x, targets),
    "last axis of 1": lambda x: dice(x[..., None], targets[..., None]),
    "binary_dice_loss": lambda x: optax.losses.binary_dice_loss(x, targets),
    "pixels": lambda x: dice(x.reshape(2, 64), targets.reshape(2, 64)),
}
right = 20 * (2 * targets - 1)
other = jax.random.normal(jax.random.key(0), targets.shape)
found = {}
for name, loss in losses.items():
    found[name] = {
        "right": [round(float(v), 3) for v in jnp.ravel(loss(right))],
        "random": [round(float(v), 3) for v in jnp.ravel(loss(other))],
        "right pixels after training": fitted(loss),
    }
print("optax", optax.__version__, "jax", jax.__version__)
for key, value in found.items():
    print(key, value)
good = all(
    found[name]["right"] == [0, 0] and found[name]["right pixels after training"] == 1
    for name in ("last axis of 1", "binary_dice_loss")
)
wrong = min(found["without"]["right"]) > 0.2 and found["without"]["right pixels after training"] < 0.95
wrong = wrong and min(found["pixels"]["right"]) > 0.05
sys.exit(not (good and wrong and found["last axis of 1"]["random"] == found["binary_dice_loss"]["random"]))
PYTHON
