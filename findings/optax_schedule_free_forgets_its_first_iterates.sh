#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.contrib.schedule_free_adamw and schedule_free_sgd, which evaluate at the mean of
# all iterates, x moving to z by 1 / t, for a model of which one array is in bfloat16 (a table of words, say) and all
# else in float32. Expected: float32 arrays are averaged as they are without it. Seen: the sum of weights is kept in the
# lowest type of the tree, and in bfloat16 a sum stops growing at 256 to 512 times what is added, 312 here: from there x
# moves by 1 / 312 for ever, and is a fading mean of the last iterates, noisier than the mean by a factor that grows
# with the number of steps. state_dtype=jnp.float32, which is for z, does not change it. No warning.
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

steps = 4000
makers = {
    "sgd": lambda **o: optax.contrib.schedule_free_sgd(0.01, **o),
    "adamw": lambda **o: optax.contrib.schedule_free_adamw(0.01, **o),
}
found = {}
for name, make in makers.items():
    for kind, other, options in (
        ("float32", jnp.float32, {}),
        ("with bfloat16", jnp.bfloat16, {}),
        ("with bfloat16, state_dtype", jnp.bfloat16, {"state_dtype": jnp.float32}),
    ):
        tx = make(**options)
        weights = {"weight": jnp.zeros(64), "table": jnp.zeros(4, other)}

        def step(carry, key, tx=tx, other=other):
            weights, state = carry
            noise = jax.random.normal(key, (64,))
            gradient = {"weight": weights["weight"] + noise, "table": jnp.zeros(4, other)}
            before = optax.contrib.schedule_free_eval_params(state, weights)["weight"]
            updates, state = tx.update(gradient, state, weights)
            weights = optax.apply_updates(weights, updates)
            after = optax.contrib.schedule_free_eval_params(state, weights)["weight"]
            share = jnp.vdot(after - before, state.z["weight"] - before) / jnp.sum((state.z["weight"] - before) ** 2)
            return (weights, state), share

        keys = jax.random.split(jax.random.key(0), steps)
        (weights, state), shares = jax.jit(lambda c, keys, step=step: jax.lax.scan(step, c, keys))(
            (weights, tx.init(weights)), keys
        )
        x = optax.contrib.schedule_free_eval_params(state, weights)["weight"]
        found[name, kind] = {
            "1 / share after 100, 1000, 4000": [round(float(1 / s)) for s in np.asarray(shares)[[99, 999, 3999]]],
            "deviation of x": round(float(jnp.sqrt(jnp.mean(x**2))), 4),
        }
print("optax", optax.__version__, "jax", jax.__version__, "by the table's type:")
for key, values in found.items():
    print(*key, values)
right = wrong = True
for (_, kind), values in found.items():
    shares = values["1 / share after 100, 1000, 4000"]
    if kind == "float32":
        right = right and np.allclose(shares, [100, 1000, 4000], rtol=0.05)
    else:
        wrong = wrong and abs(shares[0] - 100) < 10 and max(shares[1:]) < 330
noisier = found["sgd", "with bfloat16"]["deviation of x"] / found["sgd", "float32"]["deviation of x"]
sys.exit(not (right and wrong and noisier > 1.5))
PYTHON
