#!/bin/sh
# optax 0.2.8, jax 0.10.2 (CPU): optax.contrib.scale_by_galore and galore, for kernels that are not square. Expected:
# gradients are projected along the shorter side of the kernel, as in the paper that it names (arXiv:2403.03507: P is m
# x r for m <= n) and in its authors' code, so that a rank of the shorter side loses nothing: with optax.identity() for
# the optimizer the updates are the gradients, and between two projections a rank r of 64 keeps r / 64 of noise. Seen:
# the longer side is projected. Of a kernel of 64 x 256 with rank=64 the first gradient comes back whole, and of all
# gradients until the next projection, 199 of 200 by default, a quarter is left, 64 / 256; with rank=16 it is 0.06 in
# place of 0.25. Feed-forward layers and tables of embeddings learn in a space that is as much smaller as they are
# longer. Square kernels are right. The state is smaller so, which is not said to be the aim. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

generator = np.random.default_rng(0)


def of_optax(gradients, rank):
    tx = optax.contrib.scale_by_galore(rank=rank, update_proj_gap=200, base_optimizer=optax.identity())
    state, rows = tx.init(jnp.zeros(gradients[0].shape)), []
    for gradient in gradients:
        update, state = tx.update(jnp.asarray(gradient), state)
        rows.append(np.asarray(update))
    return rows


def of_the_paper(gradients, rank):
    """Gradients on the first one's singular vectors of the shorter side, and back."""
    u, _, v = np.linalg.svd(gradients[0], full_matrices=False)
    if len(u) <= v.shape[1]:
        return [u[:, :rank] @ (u[:, :rank].T @ gradient) for gradient in gradients]
    return [(gradient @ v[:rank].T) @ v[:rank] for gradient in gradients]


def kept(gradients, updates):
    """The share of the first gradient and the mean share of the others that the updates keep."""
    shares = [float((g * u).sum() / (g * g).sum()) for g, u in zip(gradients, updates, strict=True)]
    return round(shares[0], 2), round(float(np.mean(shares[1:])), 2)


found = {}
for shape in (64, 256), (256, 64), (64, 64):
    gradients = generator.normal(size=(10, *shape)).astype(np.float32)
    for rank in 64, 16:
        found[shape, rank] = kept(gradients, of_optax(gradients, rank)), kept(gradients, of_the_paper(gradients, rank))
print("optax", optax.__version__, "jax", jax.__version__)
print("kernel and rank: what is kept of the first gradient and of the next ones, by optax and by the paper")
for key, value in found.items():
    print(*key, *value)
right = all(found[(64, 64), rank][0] == found[(64, 64), rank][1] for rank in (64, 16))
for shape in (64, 256), (256, 64):
    (first, later), paper = found[shape, 64]
    right &= first == 1 and abs(later - 0.25) < 0.05 and paper == (1, 1)
    (_, later), (_, paper) = found[shape, 16]
    right &= later < 0.1 < 0.2 < paper
sys.exit(not right)
PYTHON
