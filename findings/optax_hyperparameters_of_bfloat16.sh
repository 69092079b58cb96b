#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): inject_hyperparams(optax.adam)(learning_rate=1e-3), as one uses it to read or set the learning rate in training, for
# parameters in bfloat16. Expected: the updates of optax.adam(1e-3). Seen: NaN from the first step on. The hyperparameters are kept in the parameters' type,
# in which b2=0.999 is 1, so that the second moment stays 0 and is divided by 1 - b2**t, 0 too. float16 does the same to eps=1e-8, which becomes 0. Of adamw
# the weight decay is rounded to 8 bits, and a learning rate that a schedule sets stays float32. hyperparam_dtype=jnp.float32 serves, but makes the updates
# float32. No warning.
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

found = {}
for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
    parameters = jnp.ones(256, dtype)
    for name, optimizer in {
        "adam": optax.adam(1e-3), "injected": optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
        "injected, float32": optax.inject_hyperparams(optax.adam, hyperparam_dtype=jnp.float32)(learning_rate=1e-3),
    }.items():
        state = optimizer.init(parameters)
        for step in range(5):
            gradient = jax.random.normal(jax.random.key(step), (256,)).astype(dtype)
            updates, state = optimizer.update(gradient, state, parameters)
        kept = {key: float(state.hyperparams[key]) for key in ("b2", "eps")} if "injected" in name else {}
        found[jnp.dtype(dtype).name, name] = {**kept, "finite": round(float(jnp.isfinite(updates).mean()), 2), "type": updates.dtype.name}
print("optax", optax.__version__, "jax", jax.__version__, found)
finite = {key: value["finite"] for key, value in found.items()}
right = all(value == 1 for (dtype, name), value in finite.items() if name != "injected" or dtype == "float32")
half = found["bfloat16", "injected"]
sys.exit(not (right and half["b2"] == 1 and half["finite"] == 0 and found["float16", "injected"]["eps"] == 0))
PYTHON
