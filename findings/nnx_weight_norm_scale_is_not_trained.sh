#!/bin/sh
# flax 0.12.8, optax 0.2.8, jax 0.10.2 (CPU): nnx.WeightNorm(layer, use_scale=True), the default, which is documented as a
# parameter of scale. Expected: the length of each column is learned, as flax.linen.WeightNorm, torch's weight_norm and the
# paper (Salimans and Kingma, 2016) have it. Seen: the scales are bare arrays in a dict and no nnx.Param: nnx.state(model,
# nnx.Param) does not hold them, nnx.grad gives no gradient for them, nnx.Optimizer(wrt=nnx.Param) does not move them, and a
# checkpoint of the parameters lacks them. All columns keep a length of 1: a target with columns of length 4 is learned by linen
# to a loss of 0 and by nnx to 9/16 of its variance and no further. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

x = jax.random.normal(jax.random.key(0), (256, 8))
w = jax.random.normal(jax.random.key(1), (8, 4))
y = x @ (4 * w / jnp.linalg.norm(w, axis=0))

model = nnx.WeightNorm(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(0.03), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer):
    loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
    optimizer.update(model, gradients)
    return loss


for _ in range(600):
    loss = step(model, optimizer)
names = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
scales = [float(s) for scales in model.scales.values() for s in scales]
found = {"nnx": {"parameters": names, "loss": float(loss), "scales": scales}}

other = nn.WeightNorm(nn.Dense(4))
variables = other.init(jax.random.key(0), x)
tx = optax.adam(0.03)
state = tx.init(variables)


@jax.jit
def linen_step(variables, state):
    loss, gradients = jax.value_and_grad(lambda v: jnp.mean((other.apply(v, x) - y) ** 2))(variables)
    updates, state = tx.update(gradients, state)
    return optax.apply_updates(variables, updates), state, loss


for _ in range(600):
    variables, state, loss = linen_step(variables, state)
leaves = jax.tree_util.tree_leaves_with_path(variables)
scales = next(leaf for path, leaf in leaves if "scale" in jax.tree_util.keystr(path))
names = [jax.tree_util.keystr(path) for path, _ in leaves]
found["linen"] = {"parameters": names, "loss": float(loss), "scales": [float(s) for s in scales]}
print("flax", flax.__version__, "optax", optax.__version__, "jax", jax.__version__)
print("variance of the target:", float(jnp.mean(y**2)), found)
named = any("scale" in name for name in found["nnx"]["parameters"])
wrong = set(found["nnx"]["scales"]) == {1.0} and found["nnx"]["loss"] > 5 and not named
sys.exit(not (wrong and found["linen"]["loss"] < 0.01 and min(abs(s) for s in found["linen"]["scales"]) > 3.5))
PYTHON
