#!/bin/sh
# jax 0.10.2, torch 2.13.0 (CPU): random numbers of jax.random in bfloat16. Expected: those of float32, rounded, as PyTorch has them: a distribution
# right to the precision of the type. Seen: they are made of one of 128 uniform numbers, 0 among them. Of 4 million normal(dtype=bfloat16) none is
# above 2.6 or below -2.9 and the mean is -0.011; PyTorch's reach 5. bernoulli with a probability of 0.001 in bfloat16 is true in 0.8 % of the
# draws. categorical of logits in bfloat16, a language model's, draws a token of probability 0.0009 twenty times less often
# than it should, and one of 0.0001 a hundred times less. Drawn in float32 and cast, or with logits cast to float32, all are right.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later; downloads PyTorch into a temporary folder.
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

key, number = jax.random.key(0), 2**22
normal = jax.random.normal(key, (number,), jnp.bfloat16).astype(jnp.float32)
torch.manual_seed(0)
peer = torch.randn(number, dtype=torch.bfloat16).float()
normals = {
    name: [round(float(f(x)), 4) for f in (lambda x: x.min(), lambda x: x.max(), lambda x: x.mean())]
    for name, x in (("jax", normal), ("torch", peer))
}
logits = np.log(np.array([0.9, 0.09, 0.009, 0.0009, 0.0001], np.float32))
rates, tokens = {}, {}
for dtype in (jnp.float32, jnp.bfloat16):
    name = jnp.dtype(dtype).name
    rates[name] = [round(float(jax.random.bernoulli(key, jnp.asarray(p, dtype), (number,)).mean()), 5) for p in (0.001, 0.01)]
    drawn = np.asarray(jax.random.categorical(key, jnp.asarray(logits, dtype), shape=(number // 2,)))
    tokens[name] = (np.bincount(drawn, minlength=5) / drawn.size).round(6).tolist()
rates["torch"] = [
    round(float(torch.bernoulli(torch.full((number,), p, dtype=torch.bfloat16)).float().mean()), 5) for p in (0.001, 0.01)
]
print("jax", jax.__version__, "torch", torch.__version__, "normal (least, most, mean):", normals)
print("bernoulli of 0.001 and 0.01:", rates)
print("categorical of 0.9, 0.09, 0.009, 0.0009, 0.0001:", tokens)
coarse = normals["jax"][1] < 3 < 4.5 < normals["torch"][1] and normals["jax"][2] < -0.005 and abs(normals["torch"][2]) < 0.002
rates_off = rates["bfloat16"][0] > 0.005 and all(abs(rates[n][0] - 0.001) < 2e-4 for n in ("float32", "torch"))
tokens_off = tokens["bfloat16"][3] < 1e-4 and abs(tokens["float32"][3] - 9e-4) < 1e-4
sys.exit(not (coarse and rates_off and tokens_off))
PYTHON
