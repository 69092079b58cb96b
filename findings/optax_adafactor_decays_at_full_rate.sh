#!/bin/sh
# optax 0.2.8, jax 0.10.2, torch 2.13.0 (CPU): optax.adafactor(learning_rate, weight_decay_rate=0.01), whose documentation names
# a rate of decay and no more. Expected: a decay times the learning rate, as optax.adamw, optax.lion and torch.optim.Adafactor
# have it, whose updates without decay are equal to those of optax.adafactor to rounding. Seen: the decay is added after the
# learning rate: each step takes 1 % of the weights, whatever the rate, its warmup and its end: with a learning rate of 0 all
# weights are a third after 100 steps. With a rate of 0.01 and AdamW's usual decay of 0.1 torch keeps 0.9 of a weight without
# gradients over 100 steps, and optax 0.00003. A decay that is a schedule, or 0.01 * learning_rate as a number, serves.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later; downloads PyTorch into a temporary
# folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 torch==2.13.0 numpy
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

random = np.random.default_rng(0)
start = random.normal(size=(6, 4)).astype("float32")
gradients = [random.normal(size=(6, 4)).astype("float32") for _ in range(100)]


def of_optax(tx, gradients):
    weight = jnp.asarray(start)
    state = tx.init(weight)
    update = jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(jnp.asarray(gradient), state, weight)
        weight = optax.apply_updates(weight, updates)
    return np.asarray(weight)


def of_torch(rate, decay, gradients):
    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.Adafactor([weight], lr=rate, weight_decay=decay)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    return weight.detach().numpy()


def adafactor(rate, decay):
    return optax.adafactor(rate, min_dim_size_to_factor=2, weight_decay_rate=decay)


def kept(weight):
    return float((weight / start).mean())


zeros = [np.zeros_like(start)] * 100
found = {"no decay, from torch": float(np.abs(of_optax(adafactor(1e-2, None), gradients) - of_torch(1e-2, 0.0, gradients)).max())}
found["decay 0.1, rate 0.01, no gradients"] = {
    "adafactor": kept(of_optax(adafactor(1e-2, 0.1), zeros)), "torch": kept(of_torch(1e-2, 0.1, zeros)),
    "adamw": kept(of_optax(optax.adamw(1e-2, weight_decay=0.1), zeros)),
}
found["decay 0.01, rate 0"] = {
    "adafactor": kept(of_optax(adafactor(0.0, 0.01), gradients)),
    "adamw": kept(of_optax(optax.adamw(0.0, weight_decay=0.01), gradients)),
}
print("optax", optax.__version__, "jax", jax.__version__, "torch", torch.__version__)
print("share of the weights after 100 steps:", found)
equal, usual, none = found.values()
right = equal < 1e-4 and all(abs(usual[name] - 0.999**100) < 1e-3 for name in ("torch", "adamw")) and none["adamw"] == 1
sys.exit(not (right and usual["adafactor"] < 1e-4 and abs(none["adafactor"] - 0.99**100) < 1e-3))
PYTHON
