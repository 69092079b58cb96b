#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.contrib.prodigy and dadapt_adamw with a schedule that warms up from 0, as
# optax.warmup_cosine_decay_schedule does; their documentation recommends a warmup. Expected: a first step of 0, and
# training from there, as with a warmup from 1e-3 and as the authors' code does, which leaves a step alone in which its
# denominator is 0. Seen: the estimate of the step is 0 / 0 in the first step and NaN ever after: prodigy makes all
# weights NaN in the first step, dadapt_adamw in the second. A first batch whose gradients are all 0 does the same with
# a constant rate. prodigy(safeguard_warmup=True) survives the warmup, not the gradients of 0. No warning.
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

schedules = {
    "warmup from 0": optax.warmup_cosine_decay_schedule(0.0, 1.0, 10, 200),
    "warmup from 0.001": optax.warmup_cosine_decay_schedule(0.001, 1.0, 10, 200),
    "constant": 1.0,
    "constant, first gradient 0": 1.0,
}
makers = {
    "prodigy": optax.contrib.prodigy,
    "prodigy, safeguard": lambda rate: optax.contrib.prodigy(rate, safeguard_warmup=True),
    "dadapt_adamw": optax.contrib.dadapt_adamw,
}
target = jax.random.normal(jax.random.key(0), (16,))
found = {}
for name, make in makers.items():
    for kind, schedule in schedules.items():
        tx = make(schedule)

        @jax.jit
        def step(weights, state, factor, tx=tx):
            gradient = jax.grad(lambda w: jnp.sum((w - target) ** 2))(weights) * factor
            updates, state = tx.update(gradient, state, weights)
            return optax.apply_updates(weights, updates), state

        weights = jnp.zeros(16)
        state, broken = tx.init(weights), None
        for count in range(200):
            weights, state = step(weights, state, float(count > 0 or "gradient 0" not in kind))
            if broken is None and not bool(jnp.isfinite(weights).all()):
                broken = count + 1
        found[name, kind] = broken if broken else round(float(jnp.sum((weights - target) ** 2)), 3)
start = round(float(jnp.sum(target**2)), 3)
print("optax", optax.__version__, "jax", jax.__version__, "loss at the start:", start)
print("loss after 200 steps, or the step (an integer) in which weights became NaN:", found)
nan = {key: isinstance(value, int) for key, value in found.items()}
want = {
    key: key[1].endswith("gradient 0") or (key[1] == "warmup from 0" and "safeguard" not in key[0]) for key in found
}
sys.exit(not (nan == want and all(value < start for key, value in found.items() if not nan[key])))
PYTHON
