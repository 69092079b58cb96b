#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.contrib.ademamix(mu_dtype=jnp.bfloat16), "dtype to be used for the first order
# accumulator", which is documented as in optax.adamw, and matters most here, where there are two of them beside the
# second moment: 12 bytes of state for each weight in float32. Expected: both first moments in bfloat16 and the second
# in float32, 8 bytes, as optax.adamw, nadamw, lion, contrib.adopt and contrib.muon keep theirs. Seen: init makes all
# three in bfloat16, the second moment too, and the first update returns all three in float32, 12 bytes from then on:
# the option saves nothing, and changes nothing in the steps. What counts the size of the state after init, to choose a
# batch or a mesh, is off by a half, and a jitted step is compiled twice. lax.scan over steps raises an error.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import collections
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

start = jnp.ones((64, 64))
gradients = jax.random.normal(jax.random.key(0), (20, 64, 64)) + 0.3


def moments(state):
    """How many arrays of the weights' shape a state has of each type, and their bytes for each weight."""
    arrays = [x for x in jax.tree.leaves(state) if jnp.shape(x) == start.shape]
    return dict(collections.Counter(str(x.dtype) for x in arrays)), sum(x.nbytes for x in arrays) / start.size


def run(tx):
    """The state's arrays before and after the first step, the weights after 20, and how often the step was traced."""
    traces = []

    @jax.jit
    def step(state, weights, gradient):
        traces.append(0)
        updates, state = tx.update(gradient, state, weights)
        return state, optax.apply_updates(weights, updates)

    state, weights = tx.init(start), start
    rows = [moments(state)]
    for gradient in gradients:
        state, weights = step(state, weights, gradient)
        rows.append(moments(state))
    return rows[0], rows[1], np.asarray(weights), len(traces)


print("optax", optax.__version__, "jax", jax.__version__)
found = {}
for name, make in {"adamw": optax.adamw, "adopt": optax.contrib.adopt, "ademamix": optax.contrib.ademamix}.items():
    (before, after, narrow, traces), wide = run(make(0.01, mu_dtype=jnp.bfloat16)), run(make(0.01))
    apart = float(np.abs(narrow - wide[2]).max())
    found[name] = before, after, wide[1], traces, apart
    print(name, "with mu_dtype: init", *before, "then", *after, "without it", *wide[1], "traces", traces, "apart", apart)
right = all(found[name][0] == found[name][1] != found[name][2] and found[name][3] == 1 for name in ("adamw", "adopt"))
before, after, wide, traces, apart = found["ademamix"]
right &= before == ({"bfloat16": 3}, 6) and after == wide == ({"float32": 3}, 12)
sys.exit(not (right and traces == 2 and apart < 1e-6 < min(found["adamw"][4], found["adopt"][4])))
PYTHON
