#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.contrib.acprop, whose documentation gives the variance as that of g_t - m_t, with
# the mean m_t that has the new gradient in it, as the paper has it (arXiv:2110.05454), and optax.adabelief, of the same
# equations and authors. Expected: the steps of these equations, as adabelief makes them to rounding. Seen: acprop takes
# g_t - m_(t-1), the mean before it, which is 1 / b1 times as much: with epsilons of 0 all of its steps after the first
# are b1 times as long as documented, 0.9 of them by default and half with b1=0.5. A learning rate taken from the paper
# is another one here.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax.numpy as jnp
import numpy as np
import optax

gradients = np.random.default_rng(0).normal(1.0, 1.0, (50, 8))
decay = 0.99


def documented(b1, asynchronous):
    """Steps of the documented equations in float64, without epsilons; the first of acprop is the gradient."""
    mean, spread, found = np.zeros(8), np.zeros(8), []
    for count, gradient in enumerate(gradients, 1):
        before = spread / (1 - decay ** max(count - 1, 1))
        mean = b1 * mean + (1 - b1) * gradient
        spread = decay * spread + (1 - decay) * (gradient - mean) ** 2
        if asynchronous:
            found.append(-gradient / np.sqrt(before if count > 1 else 1.0))
        else:
            found.append(-mean / (1 - b1**count) / np.sqrt(spread / (1 - decay**count)))
    return np.array(found)


found = {}
for name, make in {"acprop": optax.contrib.acprop, "adabelief": optax.adabelief}.items():
    for b1 in (0.9, 0.5):
        tx = make(1.0, b1=b1, b2=decay, eps=0.0, eps_root=0.0)
        weights = jnp.zeros(8)
        state, made = tx.init(weights), []
        for gradient in gradients:
            updates, state = tx.update(jnp.asarray(gradient, jnp.float32), state, weights)
            made.append(np.asarray(updates, np.float64))
        share = (np.array(made) / documented(b1, name == "acprop"))[1:]
        found[name, b1] = [round(float(x), 3) for x in (share.min(), share.max())]
print("optax", optax.__version__, "(optimizer, b1): smallest and largest share of the documented step:", found)
sys.exit(
    found
    != {
        ("acprop", 0.9): [0.9, 0.9],
        ("acprop", 0.5): [0.5, 0.5],
        ("adabelief", 0.9): [1, 1],
        ("adabelief", 0.5): [1, 1],
    }
)
PYTHON
