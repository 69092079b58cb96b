#!/bin/sh
# flax 0.12.8, jax 0.10.2: nnx.Einsum("btd,dhk->bthk", (features, heads, size)), the projection to the heads of attention, as its kernel starts.
# Expected: lecun_normal over what is summed, a standard deviation of 1 / sqrt(features), as nnx.LinearGeneral(features, (heads, size)), the query of
# nnx.MultiHeadAttention and a matrix (features, heads * size) start. Seen: sqrt(heads) less: the equation is not asked; the axis before the
# last is taken for the inputs and those before it for a window. With 16 heads queries and keys are a quarter, and scores a sixteenth, of what they
# should be. The way back, (heads, size, features), happens to be right. kernel_init=nnx.initializers.lecun_normal(in_axis=0, out_axis=(1, 2)) serves.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
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
from flax import nnx

features, heads, size = 512, 16, 32
rngs, equation = nnx.Rngs(0), "btd,dhk->bthk"
given = nnx.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
layers = {
    "Einsum": nnx.Einsum(equation, (features, heads, size), rngs=rngs),
    "Einsum, axes given": nnx.Einsum(equation, (features, heads, size), kernel_init=given, rngs=rngs),
    "Einsum, back": nnx.Einsum("bthk,hkd->btd", (heads, size, features), rngs=rngs),
    "LinearGeneral": nnx.LinearGeneral(features, (heads, size), rngs=rngs),
    "MultiHeadAttention": nnx.MultiHeadAttention(heads, features, rngs=rngs).query,
}
x = jax.random.normal(jax.random.key(0), (4, 64, features))
found = {name: float(layer.kernel[...].std() * features**0.5) for name, layer in layers.items()}
outputs = {name: float(layers[name](x).std()) for name in ("Einsum", "LinearGeneral")}
print("flax", flax.__version__, "jax", jax.__version__, "deviation times sqrt(features):", found, "of the outputs:", outputs)
small = found.pop("Einsum")
sys.exit(not (abs(small - heads**-0.5) < 0.01 and all(abs(other - 1) < 0.01 for other in found.values())))
PYTHON
