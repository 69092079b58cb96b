#!/bin/sh
# flax 0.12.8, jax 0.10.2, torch 2.13.0 (CPU): nnx.avg_pool of a map in bfloat16. Expected: the mean, rounded once, as jnp.mean and
# torch.nn.functional.avg_pool2d give it. Seen: the window is added up in bfloat16 (lax.reduce_window with lax.add), in which a sum of ones stops at 256: the
# mean of ones is 0.64 for a window of 20 by 20 and 0.25 for 32 by 32. Means over 7 by 7 of numbers between 1 and 2, the end of many image models, are off by
# 0.7 %, where rounding once makes 0.15 %; over 14 by 14 by 4 %. flax.linen.avg_pool is the same function. float16 is added in float32 there. x.mean((1, 2))
# serves where the window is the map.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later; downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 torch==2.13.0 numpy
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import flax
import jax
import jax.numpy as jnp
import torch
from flax import nnx

found = {}
for width in (7, 14, 20, 32):
    window = (width, width)
    ones = {dtype: float(nnx.avg_pool(jnp.ones((1, *window, 1), dtype), window)[0, 0, 0, 0]) for dtype in (jnp.bfloat16, jnp.float16)}
    x = 1 + jax.random.uniform(jax.random.key(0), (1, *window, 2000)).astype(jnp.bfloat16)
    exact = x.astype(jnp.float32).mean((1, 2))[0]
    other = torch.tensor(jax.device_get(x.astype(jnp.float32))).bfloat16().permute(0, 3, 1, 2)
    means = {
        "nnx": nnx.avg_pool(x, window)[0, 0, 0], "jnp.mean": x.mean((1, 2))[0],
        "torch": jnp.asarray(torch.nn.functional.avg_pool2d(other, width)[0, :, 0, 0].float().numpy()),
    }
    errors = {name: round(float(jnp.sqrt(jnp.mean((mean.astype(jnp.float32) / exact - 1) ** 2))), 5) for name, mean in means.items()}
    found[width] = {"mean of ones": list(ones.values()), "relative error": errors}
print("flax", flax.__version__, "jax", jax.__version__, "torch", torch.__version__, "means of ones (bfloat16, float16) and errors by width:", found)
wrong = found[20]["mean of ones"][0] < 0.7 and found[32]["mean of ones"][0] < 0.3 and all(f["mean of ones"][1] == 1 for f in found.values())
errors = [f["relative error"] for f in found.values()]
sys.exit(not (wrong and all(e["nnx"] > 2.5 * max(e["jnp.mean"], e["torch"]) for e in errors) and max(e["torch"] for e in errors) < 0.003))
PYTHON
