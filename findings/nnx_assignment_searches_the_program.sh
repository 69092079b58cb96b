#!/bin/sh
# flax 0.12.8, jax 0.10.2 (CPU): `variable[...] = value` of an nnx.Variable while a function is traced, as nnx.BatchNorm and every
# nnx.RngStream (so each nnx.Dropout) do it. Expected: an assignment costs the same wherever it stands, as variable.set_value(value)
# does, which has the same effect. Seen: it asks both arrays for their sharding; a traced array has none, and JAX words its
# AttributeError by searching the program that was traced so far. Tracing 250 assignments takes several times as long as with
# set_value, and the more so the longer the program: four times the assignments take far more than four times as long. A training
# step of a deep network with batch norms and stochastic depth is traced a fifth slower by it.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
import time

import flax
import jax
import jax.numpy as jnp
from flax import nnx


def seconds(n, assign):
    def run(start, x):
        count = nnx.Variable(start)
        for _ in range(n):
            x = jnp.sin(x) + count[...]
            assign(count, count[...] + 1)
        return x, count[...]

    start = time.process_time()
    program = jax.jit(run).trace(jnp.zeros(()), jnp.ones(3))
    return time.process_time() - start, str(program.jaxpr)


def whole(variable, value):
    variable.set_value(value)


def indexed(variable, value):
    variable[...] = value


for assign in (whole, indexed):
    seconds(10, assign)
found = {(assign.__name__, n): seconds(n, assign) for n in (250, 1000) for assign in (whole, indexed)}
times = {key: value[0] for key, value in found.items()}
print("flax", flax.__version__, "jax", jax.__version__)
print("seconds of tracing:", {f"{name}, {n} assignments": round(t, 2) for (name, n), t in times.items()})
same = all(found["whole", n][1] == found["indexed", n][1] for n in (250, 1000))
slower = times["indexed", 250] > 2 * times["whole", 250] and times["indexed", 1000] > 8 * times["indexed", 250]
sys.exit(not (same and slower and times["whole", 1000] < 8 * times["whole", 250]))
PYTHON
