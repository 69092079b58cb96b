#!/bin/sh
# flax 0.12.8, jax 0.10.2: an NNX module that calls its parts in the order of its attributes, as vars(self) lists them. Expected: a copy computes
# the same, and so does the module under nnx.jit. Seen: nnx.clone, nnx.merge, nnx.jit and nnx.eval_shape give modules whose attributes are
# sorted by name, without a notice: parts assigned as second, first are then called as first, second, and the output is another.
# nnx.jit sorts those of the module that it is given too: the same call, outside of jit, gives another output after it than before.
# A list of parts keeps its order. Ends with 0 as long as this is so, with 1 once it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import flax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Chain(nnx.Module):
    def __init__(self, rngs):
        self.second = nnx.Linear(2, 2, rngs=rngs)
        self.first = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x):
        for part in vars(self).values():
            if isinstance(part, nnx.Module):
                x = part(x)
        return x


def order(module):
    return [name for name in vars(module) if name in ("first", "second")]


chain, x = Chain(nnx.Rngs(0)), jnp.ones((1, 2))
before, y = order(chain), chain(x)
copies = {"clone": nnx.clone(chain), "merge": nnx.merge(*nnx.split(chain)), "eval_shape": nnx.eval_shape(lambda: Chain(nnx.Rngs(0)))}
orders = {name: order(copy) for name, copy in copies.items()}
outputs = {"clone": copies["clone"](x), "jit": nnx.jit(lambda chain, x: chain(x))(chain, x), "after jit": chain(x)}
apart = {name: float(np.abs(other - y).max()) for name, other in outputs.items()}
print("flax", flax.__version__, before, orders, "after jit", order(chain), apart)
turned = ["first", "second"]
changed = before == turned[::-1] and order(chain) == turned and all(found == turned for found in orders.values())
sys.exit(not (changed and all(value > 0.1 for value in apart.values())))
PYTHON
