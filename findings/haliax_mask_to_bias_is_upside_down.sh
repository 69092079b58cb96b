#!/bin/sh
# haliax 1.4.dev453 (1.3 has the same function), jax 0.10.2 (CPU): haliax.nn.attention.mask_to_bias(mask), for the bias
# of dot_product_attention. Expected: attention with the bias is attention with the mask, in which True is a key that is
# seen, as dot_product_attention, causal_mask and prefix_lm_mask of the same module have it. Seen: -1e9 is put where the
# mask is True: what was to be seen is hidden and what was to be hidden is seen. With a causal mask every token attends
# to later ones alone, and the last, whose keys all get the same -1e9, to all alike: scores are lost beside it in
# float32. mask_to_bias of the inverted mask is right.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet haliax==1.4.dev453 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import haliax
import jax
import numpy as np
from haliax.nn import attention

Query, Pos, Key = haliax.make_axes(query=6, pos=6, key=4)
q = haliax.random.normal(jax.random.key(0), (Query, Key))
k, v = (haliax.random.normal(x, (Pos, Key)) for x in jax.random.split(jax.random.key(1)))
causal = attention.causal_mask(Query, Pos)


def weights(**options):
    w = attention.dot_product_attention_weights(Key, Pos, q, k, **options)
    return np.asarray(w.rearrange((Query, Pos)).array, np.float64)


earlier = np.tril(np.ones((6, 6), bool))
scores = np.exp(np.asarray(q.array, np.float64) @ np.asarray(k.array, np.float64).T / 2) * earlier
exact = scores / scores.sum(1, keepdims=True)
found = {
    "mask": weights(mask=causal),
    "bias of the mask": weights(bias=attention.mask_to_bias(causal)),
    "bias of the inverted mask": weights(bias=attention.mask_to_bias(~causal)),
}
gaps = {name: float(np.abs(w - exact).max()) for name, w in found.items()}
later = {name: (w * ~earlier).sum(1).round(3).tolist() for name, w in found.items()}
print("haliax", importlib.metadata.version("haliax"), "jax", jax.__version__, "from exact causal weights:", gaps)
print("weight of later tokens by token:", later)
right = max(gaps["mask"], gaps["bias of the inverted mask"]) < 1e-5
sys.exit(
    not (
        right
        and min(later["bias of the mask"][:5]) > 0.999
        and np.abs(found["bias of the mask"][5] - 1 / 6).max() < 1e-6
    )
)
PYTHON
