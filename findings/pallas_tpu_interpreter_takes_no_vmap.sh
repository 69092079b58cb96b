#!/bin/sh
# jax 0.10.2 (CPU): jax.vmap of a pallas_call with dimension_semantics, interpreted by InterpretParams() of pallas.tpu. Expected: the kernel for each row, as
# interpret=True gives and as the compiler for TPUs takes it, which counts the axis that vmap adds to the grid as another one and calls it parallel. Seen:
# ValueError: safe_zip() argument 1 has length 1 but argument 0 has length 2: the interpreter pairs the axes of the grid with the semantics that were given.
# Without dimension_semantics, with one row and with jax.lax.map in place of vmap it runs. 0.12.0.1 does the same.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import logging
import sys

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

logging.disable(logging.CRITICAL)
x = jnp.arange(3 * 16 * 128.0).reshape(3, 16, 128)
block = pl.BlockSpec((8, 128), lambda i: (i, 0))


def add_one(x_ref, y_ref):
    y_ref[...] = x_ref[...] + 1


def call(semantics, interpret):
    params = pltpu.CompilerParams(dimension_semantics=semantics)
    return lambda x: pl.pallas_call(
        add_one, grid=2, in_specs=[block], out_specs=block, out_shape=jax.ShapeDtypeStruct((16, 128), x.dtype), compiler_params=params, interpret=interpret
    )(x)


def right(run, x):
    """Whether it gives x + 1, or the error that it raises."""
    try:
        return bool((run(x) == x + 1).all())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


simulated = pltpu.InterpretParams()
found = {
    "vmap, parallel": right(jax.vmap(call(("parallel",), simulated)), x), "vmap, arbitrary": right(jax.vmap(call(("arbitrary",), simulated)), x),
    "vmap, None": right(jax.vmap(call(None, simulated)), x), "vmap of one row": right(jax.vmap(call(("parallel",), simulated)), x[:1]),
    "lax.map": right(lambda x: jax.lax.map(call(("parallel",), simulated), x), x), "vmap, interpret=True": right(jax.vmap(call(("parallel",), True)), x),
}
lowered = jax.jit(jax.vmap(call(("parallel",), False))).trace(x).lower(lowering_platforms=("tpu",)).as_text()
found["lowers for a TPU"] = "tpu_custom_call" in lowered
print("jax", jax.__version__, found)
error = "ValueError: safe_zip() argument 1 has length 1 but argument 0 has length 2"
wrong = [found.pop(name) for name in ("vmap, parallel", "vmap, arbitrary")]
sys.exit(not (all(value is True for value in found.values()) and all(str(value).startswith(error) for value in wrong)))
PYTHON
