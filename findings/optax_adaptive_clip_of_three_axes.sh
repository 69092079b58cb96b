#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.adaptive_grad_clip (Brock et al., 2021) of weights with three axes: the kernel of a
# convolution over a text (width, inputs, outputs) and of an attention's projection back (heads, size, outputs). Expected: one
# factor for each unit, an output with all of its inputs, as the paper has it and as the same weights get it that are written as
# a matrix or with a fourth axis of length 1; optax.transforms' unitwise_norm documents the axes (0, 1, 2) for three. Seen:
# norms are taken over the first axis alone, over the taps of a convolution or over the heads, so that every pair of an input
# and an output is clipped by itself: the gradient of a unit keeps its direction with a cosine of 0.86 and 0.95, where clipping
# keeps it exactly. No warning.
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


def clipped(gradient, weight, shape):
    tx = optax.adaptive_grad_clip(0.01)
    gradient, weight = gradient.reshape(shape), weight.reshape(shape)
    return tx.update(gradient, tx.init(weight), weight)[0].reshape(-1, shape[-1])


found = {}
for name, shape in {"convolution": (3, 64, 32), "projection of 8 heads": (8, 16, 32)}.items():
    weight = jax.random.normal(jax.random.key(0), shape) / 8
    gradient = jax.random.normal(jax.random.key(1), shape)
    flat, units = gradient.reshape(-1, shape[-1]), weight.reshape(-1, shape[-1])
    exact = flat * 0.01 * jnp.linalg.norm(units, axis=0) / jnp.linalg.norm(flat, axis=0)
    ways = {"three axes": shape, "four axes": (1, *shape), "matrix": (-1, shape[-1])}
    for way, form in ways.items():
        form = flat.shape if form[0] == -1 else form
        y = clipped(gradient, weight, form)
        cosine = jnp.sum(y * flat, 0) / jnp.linalg.norm(y, axis=0) / jnp.linalg.norm(flat, axis=0)
        found[name, way] = {"error": float(jnp.abs(y - exact).max() / jnp.abs(exact).max()), "cosine": float(cosine.mean())}
print("optax", optax.__version__, "jax", jax.__version__)
print("error of the clipped gradient, and its cosine with the gradient:", found)
right = all(f["error"] < 1e-4 and f["cosine"] > 0.9999 for (_, way), f in found.items() if way != "three axes")
sys.exit(not (right and all(f["error"] > 0.2 and f["cosine"] < 0.98 for (_, way), f in found.items() if way == "three axes")))
PYTHON
