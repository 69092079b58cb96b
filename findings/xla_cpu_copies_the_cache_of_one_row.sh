#!/bin/sh
# jax 0.10.2 (XLA for CPUs): a decoding loop that writes one entry per row into a donated cache of keys (batch, heads, room, size) with
# .at[].set and then multiplies queries with the cache. Expected: the cache is updated in place, whatever the batch. Seen: for a batch
# of 1, and for that alone, the compiled loop copies the whole cache (4 copies in the program; 0 for batches of 2 and 3): the scatter
# of one entry becomes an update of a slice, which is merged with the product's reshape and so done twice. A scatter of two entries,
# one of them out of bounds and dropped, has no copies and the same results. jax 0.12.0.1 does the same.
# Ends with 0 as long as this is so, with 1 once it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

HEADS, ROOM, SIZE = 4, 64, 16


def decode(batch, beside):
    rows = jnp.arange(batch)[:, None]

    def step(carry):
        count, keys, q = carry
        slots = jnp.full((batch, 1), count)
        new = q[:, None]
        if beside:
            slots = jnp.pad(slots, ((0, 0), (0, 1)), constant_values=ROOM)
            new = jnp.pad(new, ((0, 0), (0, 1), (0, 0), (0, 0)))
        keys = keys.at[rows, :, slots].set(new, mode="drop")
        scores = jnp.einsum("bhd,bhtd->bht", q, keys)
        return count + 1, keys, q + jnp.tanh(scores[..., :SIZE])

    keys = jnp.zeros((batch, HEADS, ROOM, SIZE))
    q = jnp.sin(jnp.arange(batch * HEADS * SIZE, dtype=jnp.float32)).reshape(batch, HEADS, SIZE)
    run = jax.jit(lambda keys, q: jax.lax.while_loop(lambda c: c[0] < 8, step, (0, keys, q)), donate_argnums=0)
    compiled = run.lower(keys, q).compile()
    copies = len(re.findall(rf"= f32\[{batch},{HEADS},{ROOM},{SIZE}\]\S* copy\(", compiled.as_text()))
    return copies, np.asarray(compiled(keys, q)[2])


print("jax", jax.__version__)
alone, result = decode(1, False)
two, three = decode(2, False)[0], decode(3, False)[0]
mended, same = decode(1, True)
print("copies of the cache, by batch:", {1: alone, 2: two, 3: three}, "beside a dropped entry:", mended)
sys.exit(not (alone > 0 and two == three == mended == 0 and np.allclose(result, same, atol=1e-6)))
PYTHON
