#!/bin/sh
# flax 0.12.8, jax 0.10.2: nnx.MultiHeadAttention(decode=True) with a cache of 4 places, called for a 5th token and on. Expected: an error, as
# for a token of the wrong shape, or a window that slides. Seen: each new token is written over the last one: the first three of the text
# are still seen, those between are lost, and the output is that of softmax attention over tokens 1, 2, 3 and the newest.
# No error and no NaN. Ends with 0 as long as this is so, with 1 once it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import flax
import jax
import jax.numpy as jnp
from flax import nnx

x = jax.random.normal(jax.random.key(0), (1, 7, 8))
step = nnx.MultiHeadAttention(2, 8, decode=True, rngs=nnx.Rngs(0))
whole = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
step.init_cache((1, 4, 8))
apart = []
for token in range(7):
    y = step(x[:, token : token + 1])
    seen = jnp.concatenate([x[:, : min(token, 3)], x[:, token : token + 1]], 1)
    apart.append(float(jnp.abs(y - whole(x[:, token : token + 1], seen)).max()))
sliding = float(jnp.abs(y - whole(x[:, 6:], x[:, 3:])).max())
print("flax", flax.__version__, "from attention over the first three tokens and the newest:", apart, "over the last four:", sliding)
sys.exit(not (max(apart) < 1e-5 and sliding > 0.01))
PYTHON
