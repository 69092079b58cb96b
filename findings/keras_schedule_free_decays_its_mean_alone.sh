#!/bin/sh
# keras 3.15.1 (JAX backend), optax 0.2.8, jax 0.10.2 (CPU): keras.optimizers.ScheduleFreeAdamW(weight_decay=0.1).
# Expected: the decay of the paper it names (Defazio et al., 2024) and of its authors' code, which takes it from z,
# the sequence that the gradients move, so that the mean x follows, as optax.contrib.schedule_free_adamw has it;
# without decay both libraries agree to rounding. Seen: the decay that all optimizers of Keras share is taken from the
# weights, a mixture of 0.9 x and 0.1 z, before the step; z, called momentum, is never decayed, and draws x back by 1
# / t. Without gradients weights fall as 1 / t, a third after 300 steps at a rate of 0.1, where optax has 0.08, and z
# stays where it was. Drawn to 3 by gradients, the weights of both are 2.94 after 1000 steps, but z is 2.98 in optax
# and 30 in Keras: it grows for as long as one trains, to hold up a mean that is decayed, and weights, which hold a
# tenth of it, are that much further from the mean. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
KERAS_HOME="$folder" KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax

rate = 0.1
steps = (10, 100, 300, 1000)


def ours(decay, gradient):
    """Weights and z of Keras after so many steps."""
    variable = keras.Variable(np.ones(4, "float32"))
    optimizer = keras.optimizers.ScheduleFreeAdamW(rate, weight_decay=decay)
    optimizer.build([variable])
    place = [v.path.endswith("momentum") for v in optimizer.variables].index(True)

    def step(carry, _):
        weights, state = carry
        weights, state = optimizer.stateless_apply(state, [gradient(weights[0])], weights)
        return (weights, state), (weights[0], state[place])

    start = [variable.value], [v.value for v in optimizer.variables]
    return jax.lax.scan(step, start, None, max(steps))[1]


def theirs(decay, gradient):
    """Weights and z of optax after so many steps."""
    tx = optax.contrib.schedule_free_adamw(rate, weight_decay=decay or 0.0)

    def step(carry, _):
        weights, state = carry
        updates, state = tx.update(gradient(weights), state, weights)
        weights = optax.apply_updates(weights, updates)
        return (weights, state), (weights, state.z)

    weights = jnp.ones(4)
    return jax.lax.scan(step, (weights, tx.init(weights)), None, max(steps))[1]


found = {}
for name, gradient in (("none", jnp.zeros_like), ("to 3", lambda w: w - 3)):
    for decay in (None, 0.1):
        for library, run in (("keras", ours), ("optax", theirs)):
            weights, z = run(decay, gradient)
            found[name, decay, library] = [[round(float(a[s - 1, 0]), 4) for s in steps] for a in (weights, z)]
print("keras", keras.__version__, "optax", optax.__version__, "jax", jax.__version__, "steps:", steps)
print("(gradient, decay, library): [weights, z]")
for key, value in found.items():
    print(key, value)
same = all(np.allclose(found[n, None, "keras"], found[n, None, "optax"], atol=0.01) for n in ("none", "to 3"))
kept = found["none", 0.1, "keras"][1] == [1, 1, 1, 1] and found["none", 0.1, "keras"][0][2] > 0.3
fallen = abs(found["none", 0.1, "optax"][0][2]) < 0.1
grown = found["to 3", 0.1, "keras"][1][3] > 25 and max(found["to 3", 0.1, "optax"][1]) < 3
sys.exit(not (same and kept and fallen and grown))
PYTHON
