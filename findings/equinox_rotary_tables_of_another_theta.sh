#!/bin/sh
# equinox 0.13.8, jax 0.10.2 (CPU): two equinox.nn.RotaryPositionalEmbedding of the same size with different theta in one
# process, as models with local and global layers have them (Gemma 3: 10,000 and 1,000,000) and as one has them who compares a
# short with a long context. Expected: each rotates by its own theta. Seen: the tables are kept by size and type alone, for all
# modules: the one that is called second rotates by the theta of the first, until it is called with a longer text; from then on
# the first rotates by the theta of the second. Which model is right depends on the order of calls. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet equinox==0.13.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import equinox as eqx
import jax
import numpy as np

size = 16


def rotated(x, theta):
    """The rotation of x (tokens, size) by halves, in float64."""
    x = np.asarray(x, np.float64)
    angles = np.arange(len(x))[:, None] * theta ** -(np.arange(size // 2) / (size // 2))
    first, second = np.split(x, 2, 1)
    return np.concatenate([first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], 1)


modules = {theta: eqx.nn.RotaryPositionalEmbedding(size, theta=theta) for theta in (1e4, 1e6)}
found = []
for length, order in ((32, (1e4, 1e6)), (64, (1e6, 1e4))):
    x = jax.random.normal(jax.random.key(length), (length, size))
    for theta in order:
        y = modules[theta](x)
        gaps = {by: round(float(np.abs(y - rotated(x, by)).max()), 4) for by in modules}
        found.append((length, theta, min(gaps, key=gaps.get), gaps))
print("equinox", importlib.metadata.version("equinox"), "jax", jax.__version__)
print("(tokens, own theta, theta it rotates by, gaps):", found)
right = all(gaps[by] < 1e-4 for *_, by, gaps in found)
sys.exit(not (right and [by for _, _, by, _ in found] == [1e4, 1e4, 1e6, 1e6]))
PYTHON
