#!/bin/sh
# keras-hub 0.32.0, keras 3.15.1 with JAX, jax 0.10.2 (CPU): keras_hub.layers.RotaryEmbedding(rope_type="dynamic",
# scaling_factor=4). Expected: what "dynamic" means in configurations of models, scaling by the base (NTK):
# max_wavelength * 4 ** (d / (d - 2)), which leaves the fastest frequency as it is and divides the slowest by 4, so that
# near tokens are told apart as before. Seen: all frequencies are divided by 4 ** (d / (d - 2)), as rope_type="linear"
# with a factor of 4.87 does it for d = 16: neighboring tokens are a fifth of a radian apart in place of one, the
# exponent that belongs to the base is on the frequencies. rope_type="linear" is right, and so are both with a factor of
# 1. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 regex tokenizers
"$folder/venv/bin/pip" install --quiet --no-deps keras-hub==0.32.0
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
import jax
import keras
import keras_hub
import numpy as np

size, factor, tokens = 16, 4.0, 64
x = np.random.default_rng(0).normal(size=(1, tokens, size)).astype("float32")


def rotated(base, stretch=1.0):
    """The rotation of x by halves in float64, with positions divided by stretch."""
    angles = np.arange(tokens)[:, None] / stretch * base ** -(np.arange(size // 2) / (size // 2))
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = np.split(x.astype(np.float64), 2, -1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


power = factor ** (size / (size - 2))
forms = {"linear": rotated(1e4, factor), "by the base": rotated(1e4 * power), "linear, power": rotated(1e4, power)}
found = {}
for kind in ("linear", "dynamic"):
    y = np.asarray(keras_hub.layers.RotaryEmbedding(rope_type=kind, scaling_factor=factor)(x))
    found[kind] = {name: round(float(np.abs(y - z).max()), 4) for name, z in forms.items()}
print("keras-hub", keras_hub.__version__, "keras", keras.__version__, "jax", jax.__version__, "from rotations:", found)
wrong = found["dynamic"]["by the base"] > 0.1 and found["dynamic"]["linear, power"] < 1e-3
sys.exit(not (wrong and found["linear"]["linear"] < 1e-3))
PYTHON
