#!/bin/sh
# keras 3.15.1 with JAX, jax 0.10.2, torch 2.13.0 (CPU): keras.optimizers.Nadam. Expected: a momentum at step t of
# beta_1 (1 - 0.96^(t / 250) / 2), which takes some 10,000 steps from half of beta_1 to nine tenths of it, as in the
# report that it names (Dozat, 2015), and as torch.optim.NAdam has it with its momentum_decay of 0.004. Seen: 0.96^t:
# the momentum is at nine tenths of beta_1 after 40 steps and at all of it after a hundred; the warmup is 250 times
# shorter, and of the first 200 steps each is off by half of its length, on average. PyTorch with momentum_decay=1.0
# makes the same steps to rounding. No option of Keras sets it.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later; downloads PyTorch into a
# temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy torch==2.13.0
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
import keras
import numpy as np
import torch

gradients = np.random.default_rng(0).normal(0.3, 1.0, (200, 8)).astype("float32")


def of_keras():
    weight = keras.Variable(np.zeros(8, "float32"))
    optimizer = keras.optimizers.Nadam(0.01, epsilon=1e-8)
    optimizer.build([weight])
    path = []
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
        path.append(np.array(weight.value))
    return np.diff(np.array(path, np.float64), axis=0, prepend=0)


def of_torch(decay):
    weight = torch.nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.NAdam([weight], 0.01, momentum_decay=decay)
    path = []
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
        path.append(weight.detach().numpy().copy())
    return np.diff(np.array(path, np.float64), axis=0, prepend=0)


steps = of_keras()
found = {}
for decay in (0.004, 1.0):
    other = of_torch(decay)
    found[decay] = (
        float(np.abs(steps - other).max() / np.abs(other).max()),
        float(np.abs(steps - other).mean() / np.abs(other).mean()),
    )
print("keras", keras.__version__, "torch", torch.__version__)
print("by momentum_decay of PyTorch: largest and mean difference of steps, relative:", found)
sys.exit(not (min(found[0.004]) > 0.05 and max(found[1.0]) < 1e-3))
PYTHON
