#!/bin/sh
# equinox 0.13.8, jax 0.10.2 (CPU): equinox.nn.BatchNorm(mode="batch"), the mode that it recommends, trained for a few steps and called with inference_mode.
# Expected: batches of standard deviation 2 come out with 1, as in training; its documentation says that statistics are kept as PyTorch, Flax and Haiku keep
# them. Seen: the running variance starts from 1 and is then divided by 1 - momentum^steps, as if it had started from 0, so that momentum^steps / (1 -
# momentum^steps) too much is in it: 99 after a step, 9.5 after ten, 0.58 after a hundred with the default momentum of 0.99. Outputs are too small until some
# 500 steps are done, and small inputs long after. The running mean, which starts from 0, is right, and so is mode="ema".
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet equinox==0.13.8 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import equinox as eqx
import jax
import jax.numpy as jnp


def call(layer, state, x):
    return jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


found = {}
for mode in ("batch", "ema"):
    for deviation in (2.0, 0.1):
        layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode=mode)
        step = eqx.filter_jit(call)
        inference = eqx.nn.inference_mode(layer)
        for steps in range(1, 501):
            x = 3 + deviation * jax.random.normal(jax.random.key(steps), (256, 4))
            trained, state = step(layer, state, x)
            if steps in (1, 10, 100, 500):
                y, _ = step(inference, state, x)
                found[mode, deviation, steps] = round(float(y.std(0).mean()), 3), round(float(jnp.abs(y.mean()) / y.std()), 3)
print("equinox", importlib.metadata.version("equinox"), "deviation of the output (1 in training) and mean over it, by mode, deviation and steps:", found)
first = found["batch", 2.0, 1][0] < 0.25 and found["batch", 2.0, 10][0] < 0.6 and found["batch", 0.1, 500][0] < 0.9
sys.exit(not (first and all(abs(f[0] - 1) < 0.1 for key, f in found.items() if key[0] == "ema") and max(f[1] for f in found.values()) < 0.2))
PYTHON
