#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.contrib.muon(adaptive=True), which multiplies each step by the dual norm of its
# gradient, for the weights of layers stacked in one array (layers, inputs, outputs), as a scan over layers has them,
# with MuonDimensionNumbers(1, 2). Expected: the steps of the same layers in arrays of their own, as the documentation
# has it that axes which are neither inputs nor outputs are a batch and taken independently; without adaptive=True
# they agree to rounding. Seen: the dual norm is summed over the whole array: each of 12 layers takes a step 12 times
# as long as alone, 48 layers one of 48 times. A layer whose gradient is 100 times as small as the others' takes a
# step as long as theirs. Heads stacked in front of (heads, inputs, size) do the same. A learning rate found with a
# list of layers, or with few of them, is another one for the stack. No warning.
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


def norms(gradient, adaptive, stacked):
    """The length of the first step of each layer."""
    if stacked:
        numbers = optax.contrib.MuonDimensionNumbers(1, 2)
        tx = optax.contrib.muon(1.0, adaptive=adaptive, muon_weight_dimension_numbers=numbers)
    else:
        gradient = list(gradient)
        tx = optax.contrib.muon(1.0, adaptive=adaptive)
    updates, _ = jax.jit(tx.update)(gradient, tx.init(gradient), gradient)
    return np.linalg.norm(np.stack([np.asarray(u) for u in updates]), axis=(1, 2))


found = {}
for layers in (1, 12, 48):
    gradient = jax.random.normal(jax.random.key(layers), (layers, 16, 32))
    for adaptive in (False, True):
        found[layers, adaptive] = norms(gradient, adaptive, True) / norms(gradient, adaptive, False)
small = gradient[:12].at[0].multiply(0.01)
parts = {stacked: norms(small, True, stacked) for stacked in (False, True)}
parts = {stacked: float(n[0] / n[1:].mean()) for stacked, n in parts.items()}
print("optax", optax.__version__, "jax", jax.__version__)
print("(layers, adaptive): lengths of steps in a stack by those in a list")
for key, value in found.items():
    print(key, "from", round(float(value.min()), 3), "to", round(float(value.max()), 3))
print("a layer of gradients 0.01 times the others', its step by theirs, in a list:", round(parts[False], 4))
print("in a stack:", round(parts[True], 4))
same = all(np.allclose(found[key], 1, atol=1e-3) for key in ((1, False), (12, False), (48, False), (1, True)))
grown = all(np.allclose(found[layers, True], layers, rtol=0.2) for layers in (12, 48))
sys.exit(not (same and grown and parts[False] < 0.02 and 0.8 < parts[True] < 1.2))
PYTHON
