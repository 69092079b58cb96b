#!/bin/sh
# jax 0.10.2 (XLA for CPUs): a fori_loop that reads one row of an array, adds a carried state, writes the sum over that row, and carries
# a multiple of the sum on. Expected: in place, as the same loop is that carries the sum itself. Seen: the whole array is copied twice
# in every step. For 2048 rows of 512 float32 that is some 1,500 ms for 2 to 4 ms; writing to an array of its own takes 2 ms again.
# jax 0.12.0.1 does the same. Ends with 0 as long as this is so, with 1 once it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import re
import sys
import time

import jax
import jax.numpy as jnp

rows, width = 2048, 512


def loop(x, scaled, apart):
    def step(i, carry):
        state, y = carry
        row = jax.lax.dynamic_index_in_dim(x if apart else y, i, 0, keepdims=False)
        state = state + row
        y = jax.lax.dynamic_update_index_in_dim(y, state, i, 0)
        return 0.5 * state if scaled else state, y

    return jax.lax.fori_loop(0, rows, step, (jnp.zeros(width), jnp.empty_like(x) if apart else x))[1]


x, copies = jnp.ones((rows, width)), {}
for scaled in (False, True):
    for apart in (False, True):
        program = jax.jit(loop, static_argnums=(1, 2)).lower(x, scaled, apart).compile()
        text = program.as_text()
        bodies = [re.search(rf"^%{re.escape(name)} .*?^}}", text, re.M | re.S)[0] for name in re.findall(r"body=%([\w.]+)", text)]
        copies[scaled, apart] = sum(len(re.findall(rf"f32\[{rows},{width}\]\S* copy\(", body)) for body in bodies)
        jax.block_until_ready(program(x))
        start = time.perf_counter()
        jax.block_until_ready(program(x))
        print("scaled" if scaled else "plain ", "apart" if apart else "over  ", copies[scaled, apart], "copies a step,",
              round(1e3 * (time.perf_counter() - start), 1), "ms")
print("jax", jax.__version__)
sys.exit(copies != {(False, False): 0, (False, True): 0, (True, False): 2, (True, True): 0})
PYTHON
