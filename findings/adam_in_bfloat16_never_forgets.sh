#!/bin/sh
# optax 0.2.8, jax 0.10.2 and torch 2.13.0 (CPU): Adam with its defaults for parameters in bfloat16, whose mean of squared gradients is bfloat16 too.
# Expected: a mean that is rounded, but follows the gradients. Seen, in both: once it is there it can't fall, since 0.999 of a number is rounded
# to the number. After one gradient of 1 and 4000 of 0.01 it is 1e-3, that of the first step, in place of 1.2e-4, and the steps are a third of what they
# should be, for ever. It stops on its way up, too: of 4000 gradients of 1 it is 0.5, not 0.98. optax's mu_dtype is that of the other mean only;
# nothing sets this one's. Parameters in float32, cast to bfloat16 where they are used, have none of this.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later; downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import optax
import torch

steps = 4000


def of_optax(first, rest, dtype, b2):
    adam = optax.adam(1e-3, b2=b2)
    x = jnp.ones(1, dtype)
    gradients = jnp.full((steps, 1), rest, dtype).at[0].set(first)
    state, _ = jax.lax.scan(lambda state, gradient: (adam.update(gradient, state, x)[1], None), adam.init(x), gradients)
    return float(state[0].nu[0])


def of_torch(first, rest, dtype, b2):
    x = torch.nn.Parameter(torch.ones(1, dtype=dtype))
    adam = torch.optim.Adam([x], lr=1e-3, betas=(0.9, b2))
    for step in range(steps):
        x.grad = torch.full((1,), rest if step else first, dtype=dtype)
        adam.step()
    return float(adam.state[x]["exp_avg_sq"])


found = {}
for name, function, kinds in (("optax", of_optax, jnp), ("torch", of_torch, torch)):
    for case, (first, rest, kind, b2) in {
        "falling": (1.0, 0.01, "bfloat16", 0.999), "falling, float32": (1.0, 0.01, "float32", 0.999),
        "rising": (1.0, 1.0, "bfloat16", 0.999), "rising, float32": (1.0, 1.0, "float32", 0.999),
    }.items():
        found[name, case] = round(function(first, rest, getattr(kinds, kind), b2), 6)
print("optax", optax.__version__, "jax", jax.__version__, "torch", torch.__version__, "mean of squares:", found)
held = all(found[name, "falling"] > 9e-4 > 2e-4 > found[name, "falling, float32"] for name in ("optax", "torch"))
short = all(found[name, "rising"] < 0.6 < 0.95 < found[name, "rising, float32"] for name in ("optax", "torch"))
sys.exit(not (held and short))
PYTHON
