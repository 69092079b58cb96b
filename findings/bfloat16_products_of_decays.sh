#!/bin/sh
# jax 0.10.2, torch 2.13.0 (CPU): products of many numbers below 1 in bfloat16, the decays of a gated linear attention or a state-space model. Expected:
# computed in float32 and rounded once, as sums are in both, cumulative ones too. Seen: jnp.cumprod and torch.prod round each partial product to 8 bits: after
# 200 steps of 0.99 jnp.cumprod has 0.080 and torch.prod 0.086 where 0.0945 is right; jnp.prod and torch.cumprod round once. Of random decays between 0.95 and
# 1 they are off by 7 % on average after 512 steps, and which of the two functions may be trusted is the other one in the other library.
# exp(cumsum(log(decay))) in float32 serves.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch

found = {}
decays = 0.95 + 0.05 * jax.random.uniform(jax.random.key(0), (512, 256))
for name, x in {"0.99": jnp.full((200, 1), 0.99, jnp.bfloat16), "random": decays.astype(jnp.bfloat16)}.items():
    exact = np.prod(np.asarray(x, np.float64), axis=0)
    other = torch.tensor(np.asarray(x.astype(jnp.float32))).bfloat16()
    results = {
        "jnp.prod": jnp.prod(x, axis=0), "jnp.cumprod": jnp.cumprod(x, axis=0)[-1],
        "torch.prod": other.prod(0).float().numpy(), "torch.cumprod": other.cumprod(0)[-1].float().numpy(),
    }
    for function, result in results.items():
        found[name, function] = round(float(np.abs(np.asarray(result, np.float64) / exact - 1).mean()), 4)
sums = [float(jnp.cumsum(jnp.ones(4096, jnp.bfloat16))[-1]), float(torch.ones(4096, dtype=torch.bfloat16).sum())]
print("jax", jax.__version__, "torch", torch.__version__, "mean relative errors of products:", found, "sums of 4096 ones:", sums)
wrong = [found[name, function] for name in ("0.99", "random") for function in ("jnp.cumprod", "torch.prod")]
right = [found[name, function] for name in ("0.99", "random") for function in ("jnp.prod", "torch.cumprod")]
sys.exit(not (min(wrong) > 0.03 and max(right) < 0.004 and sums == [4096, 4096]))
PYTHON
