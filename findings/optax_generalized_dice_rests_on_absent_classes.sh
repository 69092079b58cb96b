#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.losses.multiclass_generalized_dice_loss, which gives classes weights of 1 /
# count**2 (Sudre et al., 2017), for a batch that lacks one of the classes, as batches of rare classes do. Expected:
# the loss of the classes that are there; the count of an absent one, 0, is kept from ruling the sum, as MONAI's loss
# of this name does, so that a batch of which each pixel is wrong has a loss near 1. Seen: an absent class has a
# weight of 1 / 1e-7, the others of 1 / 230**2 and less, and weights are divided by their sum: all of the loss is that
# of the absent class. A prediction wrong in all of 4096 pixels, which only never names the absent class, has a loss
# of 0.000001, and an undecided one gradients that are 750,000 times smaller than those of the same batch without the
# column of the absent class, whose losses are 0.99 and 0.89. ignore_background=True does the same. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

shape = (4, 32, 32)
counts = (2824, 1042, 230)
labels = jnp.asarray(np.random.default_rng(0).permutation(np.repeat([0, 1, 2], counts)).reshape(shape))


def paper(logits, targets):
    """The loss of Sudre et al. over all pixels, with a weight of 0 for classes that are absent."""
    p = jax.nn.softmax(logits)
    count = targets.sum((0, 1, 2))
    weight = jnp.where(count > 0, 1 / jnp.maximum(count, 1) ** 2, 0)
    return 1 - 2 * weight @ (p * targets).sum((0, 1, 2)) / (weight @ (p + targets).sum((0, 1, 2)))


found = {}
for classes in (3, 4):
    targets = jax.nn.one_hot(labels, classes)
    rows = {
        "right": 20 * targets,
        "all wrong": 20 * jax.nn.one_hot((labels + 1) % 3, classes),
        "undecided": jnp.where(jnp.arange(classes) < 3, 0.0, -20.0) * jnp.ones_like(targets),
    }
    for name, logits in rows.items():
        for background in (False, True):
            function = optax.losses.multiclass_generalized_dice_loss
            loss, gradient = jax.value_and_grad(partial(function, ignore_background=background))(logits, targets)
            found[name, classes, background] = float(loss), float(jnp.linalg.norm(gradient))
        found[name, classes, "paper"] = float(paper(logits, targets)), float(
            jnp.linalg.norm(jax.grad(paper)(logits, targets))
        )
print("optax", optax.__version__, "jax", jax.__version__, "pixels of each class:", counts)
print("(prediction, classes, ignore_background or the paper's): (loss, norm of its gradient)")
for key, value in found.items():
    print(key, value)
reference = all(
    np.isclose(found[name, 3, "paper"][0], found[name, 4, "paper"][0], atol=1e-3)
    and np.isclose(found[name, 3, False][0], found[name, 3, "paper"][0], atol=0.05)
    for name in ("right", "all wrong", "undecided")
)
wrong = all(found["all wrong", 3, b][0] > 0.9 and found["all wrong", 4, b][0] < 1e-3 for b in (False, True))
still = found["undecided", 4, False][1] < 1e-3 * found["undecided", 3, False][1]
sys.exit(not (reference and wrong and still))
PYTHON
