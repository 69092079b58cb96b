#!/bin/sh
# keras 3.15.1 (JAX backend), jax 0.10.2 (CPU): keras.layers.SpectralNormalization around a Dense layer, as in the
# discriminator of a GAN, trained with fit. Expected: after it the kernel has a spectral norm of about 1, and so has
# the map that predict and evaluate compute, as the layer sets its kernel to the normalized one in each call of
# training and has nothing to normalize by in evaluation. Seen: fit on JAX keeps what a call sets in variables that
# are not trained, and drops what it sets in those that are. Each step trains with a normalized kernel, which is lost
# after it, and the kernel that is left has any norm: predict multiplies by up to 1.7, where training multiplied by 1,
# and a loss that is 0.0000 in training is 0.45 in evaluate. Calls with training=True outside of fit do set the
# kernel, and evaluate gives 0. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
KERAS_HOME="$folder" KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax
import keras
import numpy as np

rng = np.random.default_rng(0)
x = rng.normal(size=(256, 8)).astype("float32")
rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0][:, :4].astype("float32")
start = rng.normal(size=(8, 4)).astype("float32")
start *= 2.5 / np.linalg.norm(start, 2)
y = x @ rotation  # a map of norm 1, which a normalized kernel can be

layer = keras.layers.SpectralNormalization(keras.layers.Dense(4, use_bias=False), power_iterations=5)
model = keras.Sequential([keras.Input((8,)), layer])
model.compile(optimizer=keras.optimizers.SGD(0.2), loss="mse")
kernel = layer.layer.kernel
kernel.assign(start)
norm = lambda: round(float(np.linalg.norm(np.asarray(kernel), 2)), 3)
found = {"norm before": norm()}
history = model.fit(x, y, batch_size=64, epochs=60, verbose=0, shuffle=False).history["loss"]
found["norm after fit"] = norm()
solved = np.linalg.lstsq(x, model.predict(x, verbose=0), rcond=None)[0]
found["norm of predict"] = round(float(np.linalg.norm(solved, 2)), 3)
found["loss in the last epoch of fit"] = round(history[-1], 4)
found["loss of evaluate"] = round(float(model.evaluate(x, y, verbose=0)), 4)
# The same calls outside of fit.
for _ in range(3):
    model(x, training=True)
found["norm after calls with training=True"] = norm()
found["loss of evaluate after them"] = round(float(model.evaluate(x, y, verbose=0)), 4)
print("keras", keras.__version__, "jax", jax.__version__)
for key, value in found.items():
    print(f"{key}: {value}")
set_outside = abs(found["norm after calls with training=True"] - 1) < 0.05
wrong = found["norm after fit"] > 1.5 and found["norm of predict"] > 1.5
worse = found["loss of evaluate"] > 2 * found["loss in the last epoch of fit"]
sys.exit(not (set_outside and wrong and worse))
PYTHON
